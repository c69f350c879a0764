package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"slipway/hack/kube/node"
)

// oneByOne is how many pods are started one after the other to measure what a start takes.
const oneByOne = 10

// Bench prints, for Slipway and Debian's containerd under the same kubelet with the same CNI plugins, how long kubelet
// took to start pods, and what the node uses with so many idle pods.
func Bench(ctx context.Context, counts []int) error {
	slices.Sort(counts)
	fmt.Printf("%-11s %5s  %-34s %12s %12s %12s %12s\n", "runtime", "pods", "pod start as kubelet reports it", "run sandbox", "runtime CPU", "kubelet CPU", "memory")
	for _, runtime := range []string{node.Slipway, node.Containerd} {
		if err := benchRuntime(ctx, runtime, counts); err != nil {
			return fmt.Errorf("%s: %w", runtime, err)
		}
	}
	return nil
}

func benchRuntime(ctx context.Context, runtime string, counts []int) (err error) {
	n, err := node.Start(ctx, node.Options{Runtime: runtime, CNI: true, Images: []string{"busybox", "pause"}})
	if err != nil {
		return err
	}
	defer func() {
		if f, failed := recover().(failure); failed {
			err = f.error
		}
		err = errors.Join(err, n.Stop(context.WithoutCancel(ctx)))
	}()
	b := &T{Node: n, Ctx: ctx}
	before := b.latencies()
	for i := range oneByOne {
		name := fmt.Sprintf("single-%d", i)
		b.run(pod(name, sh("main", "exec sleep 100000")))
		b.waitFor(4*time.Minute, name, "ready", ready)
	}
	after := b.latencies()
	fmt.Printf("%-11s %5s  mean %6.0f ms one by one %8s %9.0f ms\n", runtime, fmt.Sprint("0+", oneByOne), after.start.mean(before.start), "", after.sandbox.mean(before.sandbox))
	b.deleteEach(oneByOne, "single-%d")
	running := 0
	for _, count := range counts {
		before, begin := b.latencies(), time.Now()
		for i := running; i < count; i++ {
			b.run(pod(fmt.Sprintf("idle-%d", i), sh("main", "exec sleep 100000")))
		}
		for i := running; i < count; i++ {
			b.waitFor(10*time.Minute, fmt.Sprintf("idle-%d", i), "ready", ready)
		}
		took, after := time.Since(begin), b.latencies()
		start, sandbox := "-", "-"
		if count > running {
			start = fmt.Sprintf("mean %6.0f ms of %d, all in %3.0f s", after.start.mean(before.start), count-running, took.Seconds())
			sandbox = fmt.Sprintf("%.0f ms", after.sandbox.mean(before.sandbox))
		}
		running = count
		b.sleep(10 * time.Second)
		use := b.Node.Use(20 * time.Second)
		fmt.Printf("%-11s %5d  %-34s %12s %10.1f %% %10.1f %% %8.1f MiB in %d processes\n", runtime, count, start, sandbox,
			use.RuntimeCPU*100, use.KubeletCPU*100, float64(use.Memory)/(1<<20), use.Processes)
	}
	b.deleteEach(running, "idle-%d")
	return nil
}

func (t *T) deleteEach(count int, pattern string) {
	var names []string
	for i := range count {
		names = append(names, fmt.Sprintf(pattern, i))
	}
	for _, name := range names {
		t.Must(os.Remove(t.manifest(name)))
	}
	for _, name := range names {
		t.until(5*time.Minute, func() bool { return t.pod(name) == nil && !t.alive(name) }, "%s is not deleted", name)
	}
	t.pods = nil
}

// histogram is the part of one that gives a mean.
type histogram struct{ sum, count float64 }

// mean, in milliseconds, of what came since.
func (h histogram) mean(before histogram) float64 {
	if h.count == before.count {
		return 0
	}
	return (h.sum - before.sum) / (h.count - before.count) * 1000
}

// latency is what kubelet measured of pod starts: from first seeing a pod to its running, and RunPodSandbox alone.
type latency struct{ start, sandbox histogram }

func (t *T) latencies() latency {
	text, err := t.API.Get(t.Ctx, "/metrics")
	t.Must(err)
	of := func(name string, parts ...string) histogram {
		return histogram{max(0, metric(text, name+"_sum", parts...)), max(0, metric(text, name+"_count", parts...))}
	}
	return latency{of("kubelet_pod_start_duration_seconds"), of("kubelet_runtime_operations_duration_seconds", `operation_type="run_podsandbox"`)}
}
