package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// user is one who may log in, by a bearer token that is made anew at each start. Groups decide what he may do.
type user struct {
	file  string // of his kubeconfig
	name  string
	group string
	token string
}

type users []user

// As the token file wants them: separated by commas.
const functionGroups = "tenantry:provisioners,tenantry:scanners"

// newUsers returns the administrator, first, and Tenantry's functions, whose groups infra/kube/rbac.yaml binds to what a
// provisioner and what a scanner may do. Here the functions share one login; on EKS, access entries put each function's role
// into the one group that it needs.
func newUsers() users {
	return users{
		{file: "admin.kubeconfig", name: "admin", group: "system:masters", token: rand.Text()},
		{file: "functions.kubeconfig", name: "tenantry-functions", group: functionGroups, token: rand.Text()},
	}
}

// writeTokenFile writes what kube-apiserver's --token-auth-file takes: token, user, uid, groups.
func (all users) writeTokenFile(path string) error {
	var lines strings.Builder
	for _, u := range all {
		fmt.Fprintf(&lines, "%s,%s,%s,%q\n", u.token, u.name, u.name, u.group)
	}
	return os.WriteFile(path, []byte(lines.String()), 0o600)
}

func (u user) kubeconfig(dir string) string {
	return filepath.Join(dir, u.file)
}

// writeKubeconfig writes a kubeconfig that holds all it needs, so that it works from anywhere on this machine.
func (u user) writeKubeconfig(dir string, api endpoint) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: tenantry
clusters:
- name: tenantry
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %s
  user:
    token: %s
contexts:
- name: tenantry
  context:
    cluster: tenantry
    user: %s
`, api.server, base64.StdEncoding.EncodeToString(api.ca), u.name, u.token, u.name)
	return os.WriteFile(u.kubeconfig(dir), []byte(text), 0o600)
}

// ensureSigningKey keeps a key that is there: service-account tokens in kept data stay valid.
func ensureSigningKey(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	return os.WriteFile(path, pem.EncodeToMemory(block), 0o600)
}
