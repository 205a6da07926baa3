// Command control-plane is every Kubernetes program of the local cluster in one file, chosen by the
// name it is called with (argv[0]), as busybox does. One file of about 140 MB replaces 450 MB, builds
// once, and its pages are shared between the running processes.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	kubeapiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubecontrollermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubescheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		os.Exit(cli.Run(kubeapiserver.NewAPIServerCommand()))
	case "kube-controller-manager":
		os.Exit(cli.Run(kubecontrollermanager.NewControllerManagerCommand()))
	case "kube-scheduler":
		os.Exit(cli.Run(kubescheduler.NewSchedulerCommand()))
	case "kubelet":
		os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background())))
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	default:
		fmt.Fprintf(os.Stderr, "control-plane: call me as etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet or kubectl, not %q\n", name)
		os.Exit(2)
	}
}
