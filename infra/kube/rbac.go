package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"net/http"

	"sigs.k8s.io/yaml"
)

// What the functions' user may do: the same file that is applied to any other cluster.
//
//go:embed rbac.yaml
var rbacYAML []byte

// The kinds that rbac.yaml may hold, and where the API has them.
var rbacPaths = map[string]string{
	"ClusterRole":                      "/apis/rbac.authorization.k8s.io/v1/clusterroles/",
	"ClusterRoleBinding":               "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/",
	"ValidatingAdmissionPolicy":        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/",
	"ValidatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/",
}

// applyRBAC applies every document of rbac.yaml as the administrator, by server-side apply: kept data is brought up to
// date with the file.
func (e *endpoint) applyRBAC(ctx context.Context) error {
	for _, document := range bytes.Split(rbacYAML, []byte("\n---\n")) {
		var object struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		if err := yaml.Unmarshal(document, &object); err != nil {
			return fmt.Errorf("rbac.yaml: %w", err)
		}
		path, known := rbacPaths[object.Kind]
		if !known {
			return fmt.Errorf("rbac.yaml: no path is known for kind %q (rbac.go)", object.Kind)
		}
		path += object.Metadata.Name + "?fieldManager=tenantry-kube&force=true"
		response, err := e.send(ctx, http.MethodPatch, path, "application/apply-patch+yaml", document)
		if err != nil {
			return fmt.Errorf("applying %s %s: %w", object.Kind, object.Metadata.Name, err)
		}
		answer, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode >= http.StatusBadRequest {
			return fmt.Errorf("applying %s %s: %s: %s", object.Kind, object.Metadata.Name, response.Status, answer)
		}
	}
	return nil
}
