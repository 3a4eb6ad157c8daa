// tenantry-kube is a real Kubernetes API without containers: etcd, kube-apiserver and the controllers that tenants'
// namespaces need, on loopback, in one static binary. No nodes, so no pod ever runs.
//
//	tenantry-kube up --dir DIR [--port PORT]   run all of it until SIGTERM, SIGINT or the end of stdin
//	tenantry-kube apiserver ...                the upstream kube-apiserver command line
//	tenantry-kube controllers ...              the upstream kube-controller-manager command line
//
// `up` prints "ready DIR/admin.kubeconfig" once the API serves and the controllers act; the kubeconfig of Tenantry's
// functions is beside it. kube-apiserver and kube-controller-manager are processes of their own (this binary, executed
// again), because both fill process-wide registries of feature gates and metrics.
package main

import (
	"fmt"
	"os"

	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

const usage = "usage: tenantry-kube up --dir DIR [--port PORT] [--ignore-stdin]"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	name, args := os.Args[1], os.Args[2:]
	switch name {
	case "up":
		if err := up(args); err != nil {
			fmt.Fprintln(os.Stderr, "tenantry-kube:", err)
			os.Exit(1)
		}
	case apiserverName:
		command := apiserver.NewAPIServerCommand()
		command.SetArgs(args)
		os.Exit(cli.Run(command))
	case controllersName:
		command := controllers.NewControllerManagerCommand()
		command.SetArgs(args)
		os.Exit(cli.Run(command))
	default:
		fmt.Fprintf(os.Stderr, "tenantry-kube: no command %q\n%s\n", name, usage)
		os.Exit(2)
	}
}
