// Command kube-node runs a real kubelet on Slipway (or, to compare, on containerd), without an API server: static pods
// from a folder, everything below one temporary directory, in a network and a mount namespace of its own.
// hack/kubelet builds and calls it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"slipway/hack/kube/node"
)

const usage = `usage: hack/kubelet up [--runtime slipway|containerd]     a node that stays; static pods go into its folder
       hack/kubelet down                                   takes it down and says what it left behind
       hack/kubelet test [--jobs N] [--pending] [NAME...]              the scenarios (those whose name contains a NAME)
       hack/kubelet soak MINUTES                           random life and death, then the leak check
       hack/kubelet bench [PODS...]                        start latency, CPU and memory beside containerd (0 50 100)
`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1], os.Args[2:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, action string, args []string) error {
	flags := flag.NewFlagSet(action, flag.ExitOnError)
	runtime := flags.String("runtime", node.Slipway, "slipway or containerd")
	jobs := flags.Int("jobs", 3, "scenarios at the same time")
	unready := flags.Bool("pending", false, "also those that wait for something Slipway lacks")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch action {
	case "up":
		return up(*runtime)
	case "down":
		return down()
	case "hold":
		return inside(func() error { return hold(ctx, *runtime) })
	case "test":
		return inside(func() error { return test(ctx, *jobs, *unready, flags.Args()) })
	case "soak":
		return inside(func() error { return soak(ctx, flags.Args()) })
	case "bench":
		return inside(func() error { return bench(ctx, flags.Args()) })
	}
	fmt.Fprint(os.Stderr, usage)
	os.Exit(2)
	return nil
}

// inside runs act in the node's own namespaces: at first by starting this program again in new ones.
func inside(act func() error) error {
	ready, err := node.Enter(filepath.Join(os.TempDir(), "slipway-kubelet"))
	if err != nil || !ready {
		return err
	}
	return act()
}
