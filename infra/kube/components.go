package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	apiserverName   = "apiserver"
	controllersName = "controllers"

	tokenFile       = "tokens.csv"
	signingKeyFile  = "service-accounts.key"
	certificateFile = "tls/apiserver.crt"

	// The controllers that a tenant's namespace needs: without them quotas are silently not enforced, deleted namespaces
	// stay Terminating, and there are no service accounts. Names are those of Kubernetes 1.28 and later.
	controllerNames = "namespace-controller,resourcequota-controller,serviceaccount-controller," +
		"serviceaccount-token-controller,root-ca-certificate-publisher-controller," +
		"clusterrole-aggregation-controller,garbage-collector-controller"

	startTimeout = 90 * time.Second
)

func apiserverArgs(dir string, port int, etcd string) []string {
	signingKey := filepath.Join(dir, signingKeyFile)
	return []string{
		"--etcd-servers=" + etcd,
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port),
		"--cert-dir=" + filepath.Join(dir, filepath.Dir(certificateFile)),
		"--service-cluster-ip-range=10.0.0.0/24",
		"--endpoint-reconciler-type=none",
		"--authorization-mode=RBAC",
		"--token-auth-file=" + filepath.Join(dir, tokenFile),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + signingKey,
		"--service-account-signing-key-file=" + signingKey,
	}
}

func controllersArgs(dir, kubeconfig string) []string {
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--leader-elect=false",
		"--secure-port=0",
		"--controllers=" + controllerNames,
		"--service-account-private-key-file=" + filepath.Join(dir, signingKeyFile),
		"--root-ca-file=" + filepath.Join(dir, certificateFile),
	}
}

// start executes this binary again as one component, logging to DIR/<name>.log. The component dies with this process,
// however this process dies; when it ends first, that is sent to ended. The returned function kills it and waits.
func start(dir, name string, args []string, ended chan<- error) (func(), error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own copy
	command := exec.Command(self, append([]string{name}, args...)...)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, err
	}
	gone := make(chan struct{})
	go func() {
		err := command.Wait()
		close(gone)
		ended <- fmt.Errorf("%s ended (%v), see %s", name, err, log.Name())
	}()
	return func() {
		_ = command.Process.Kill() // etcd has every answered write; nothing here is worth a graceful stop
		<-gone
	}, nil
}

// endpoint is the API server as the administrator reaches it.
type endpoint struct {
	server string
	token  string
	ca     []byte // PEM; known once the server serves
}

// waitServing returns when the API server says that it is ready, having read the certificate that it made for itself.
func (e *endpoint) waitServing(ctx context.Context, certificate string, ended <-chan error) error {
	return poll(ctx, ended, "kube-apiserver is not ready", func() bool {
		pem, err := os.ReadFile(certificate)
		if err != nil {
			return false
		}
		e.ca = pem
		return e.answers(ctx, "/readyz")
	})
}

// waitControlled returns when the controllers act: the default namespace has its service account.
func (e *endpoint) waitControlled(ctx context.Context, ended <-chan error) error {
	return poll(ctx, ended, "the controllers do not act", func() bool {
		return e.answers(ctx, "/api/v1/namespaces/default/serviceaccounts/default")
	})
}

func (e *endpoint) answers(ctx context.Context, path string) bool {
	response, err := e.send(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// send makes one request as the administrator. The caller closes the response's body.
func (e *endpoint) send(ctx context.Context, method, path, contentType string, body []byte) (*http.Response, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(e.ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	client := &http.Client{Timeout: 5 * time.Second, Transport: transport}
	request, err := http.NewRequestWithContext(ctx, method, e.server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+e.token)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	return client.Do(request)
}

func poll(ctx context.Context, ended <-chan error, problem string, done func() bool) error {
	deadline := time.After(startTimeout)
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return err
		case <-deadline:
			return fmt.Errorf("%s after %v", problem, startTimeout)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}
