package scenario

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"slipway/hack/kube/node"
)

var kubeletAPI = []Scenario{
	{Name: "stats/summary", Run: summary},
	{Name: "metrics/probes and metrics/resource", Run: probeMetrics},
	{Name: "stats and metrics from CRI alone", Own: &node.Options{Kubelet: statsFromCRI}, Run: criStats},
	{Name: "checkpoint", Own: checkpointing(), Lacks: lacksCriu, Run: checkpoint},
	{Name: "evented PLEG", Own: &node.Options{Kubelet: eventedPLEG}, Run: evented},
}

func forkLimited() *node.Options {
	return &node.Options{Kubelet: func(config *kubeletconfig.KubeletConfiguration) { config.PodPidsLimit = ptr(int64(64)) }}
}

func statsFromCRI(config *kubeletconfig.KubeletConfiguration) {
	gate(config, "PodAndContainerStatsFromCRI")
}

func eventedPLEG(config *kubeletconfig.KubeletConfiguration) {
	gate(config, "EventedPLEG", "PLEGOnDemandRelist")
	shortBackOff(config)
}

// busy is a pod whose figures are known within limits: memory held, processor used, files written.
func busy(name string) *v1.Pod {
	c := sh("main", "dd if=/dev/zero of=/written bs=1M count=5 2>/dev/null; cp /written /work/; (while :; do :; done) & exec /bin/sleep 1000")
	c.Resources.Limits = v1.ResourceList{v1.ResourceCPU: resource.MustParse("200m"), v1.ResourceMemory: resource.MustParse("64Mi")}
	return withWork(pod(name, c))
}

// podStats waits until the pod's figures are there and hold.
func (t *T) podStats(name string, holds func(stats.PodStats) bool) stats.PodStats {
	var found stats.PodStats
	t.until(90*time.Second, func() bool {
		summary, err := t.API.Summary(t.Ctx)
		t.Must(err)
		for _, p := range summary.Pods {
			if p.PodRef.Name == node.PodName(name) {
				found = p
				return holds(p)
			}
		}
		return false
	}, "%s has no such stats: %s", name, lazy(func() string { return describeStats(found) }))
	return found
}

// lazy is a text that is only made when it is printed.
type lazy func() string

func (l lazy) String() string { return l() }

func describeStats(p stats.PodStats) string {
	text := fmt.Sprintf("pod cpu %s memory %s network %v", show(p.CPU), show(p.Memory), p.Network != nil)
	for _, c := range p.Containers {
		text += fmt.Sprintf("\n%s cpu %s memory %s rootfs %s", c.Name, show(c.CPU), show(c.Memory), show(c.Rootfs))
	}
	return text
}

func show[V any](value *V) string {
	if value == nil {
		return "absent"
	}
	switch value := any(value).(type) {
	case *stats.CPUStats:
		return fmt.Sprintf("%d nanocores", deref(value.UsageNanoCores))
	case *stats.MemoryStats:
		return fmt.Sprintf("%d bytes", deref(value.WorkingSetBytes))
	case *stats.FsStats:
		return fmt.Sprintf("%d bytes", deref(value.UsedBytes))
	}
	return "present"
}

func deref(v *uint64) uint64 {
	if v == nil {
		return 0
	}
	return *v
}

// measured: the processor is used up to the limit of 0.2, memory and the written layer are counted.
func measured(p stats.PodStats) bool {
	if len(p.Containers) != 1 || p.CPU == nil || p.Memory == nil || p.EphemeralStorage == nil {
		return false
	}
	c := p.Containers[0]
	if c.CPU == nil || c.Memory == nil || c.Rootfs == nil || c.Logs == nil {
		return false
	}
	cores := deref(c.CPU.UsageNanoCores)
	return cores > 100e6 && cores < 300e6 && deref(c.CPU.UsageCoreNanoSeconds) > 0 &&
		deref(c.Memory.WorkingSetBytes) > 100<<10 && deref(c.Memory.WorkingSetBytes) <= 64<<20 &&
		deref(c.Rootfs.UsedBytes) >= 5<<20 && deref(p.CPU.UsageNanoCores) > 10e6 && deref(p.Memory.WorkingSetBytes) > 0 &&
		deref(p.EphemeralStorage.UsedBytes) >= 10<<20
}

func summary(t *T) {
	t.run(busy("busy"))
	t.ready("busy")
	t.podStats("busy", measured)
	all, err := t.API.Summary(t.Ctx)
	t.Must(err)
	fs := all.Node.Runtime.ImageFs
	t.expect(fs != nil && deref(fs.UsedBytes) > 0 && deref(fs.AvailableBytes) > 0, "the image file system: %+v", fs)
}

func probeMetrics(t *T) {
	c := witness("main", "serve")
	c.ReadinessProbe = every(1, httpGet("/healthz", 8080))
	t.run(pod("probed", c))
	t.ready("probed")
	t.until(30*time.Second, func() bool {
		text, err := t.API.Get(t.Ctx, "/metrics/probes")
		t.Must(err)
		return metric(text, "prober_probe_total", `pod="probed-node"`, `result="successful"`) > 0
	}, "prober_probe_total does not count")
	t.until(60*time.Second, func() bool {
		text, err := t.API.Get(t.Ctx, "/metrics/resource")
		t.Must(err)
		return metric(text, "container_memory_working_set_bytes", `pod="probed-node"`, `container="main"`) > 0 &&
			metric(text, "container_cpu_usage_seconds_total", `pod="probed-node"`) > 0
	}, "metrics/resource lacks the pod")
}

// metric is the value of the first line that has the name and all parts; -1: none.
func metric(text, name string, parts ...string) float64 {
lines:
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") {
			continue
		}
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue lines
			}
		}
		fields := strings.Fields(line[strings.LastIndex(line, "}")+1:])
		if strings.HasPrefix(line, name+" ") {
			fields = strings.Fields(line)[1:]
		}
		var value float64
		if _, err := fmt.Sscan(fields[0], &value); err == nil {
			return value
		}
	}
	return -1
}

// Only here the pod's network is told: without the gate kubelet takes it from cAdvisor, which knows containerd's and
// CRI-O's pods and no others.
func criStats(t *T) {
	t.run(busy("busy"))
	t.ready("busy")
	t.podStats("busy", func(p stats.PodStats) bool {
		return measured(p) && p.Network != nil && p.Network.Name == "eth0" && p.Network.RxBytes != nil
	})
	text, err := t.API.Get(t.Ctx, "/metrics/cadvisor")
	t.Must(err)
	for _, name := range []string{
		"container_cpu_usage_seconds_total", "container_memory_usage_bytes", "container_memory_working_set_bytes", "container_memory_rss",
		"container_memory_cache", "container_fs_usage_bytes", "container_network_receive_bytes_total", "container_network_transmit_bytes_total",
		"container_processes", "container_threads", "container_start_time_seconds", "container_spec_memory_limit_bytes", "container_last_seen",
		"container_oom_events_total", "container_cpu_cfs_periods_total", "container_cpu_cfs_throttled_periods_total",
	} {
		t.expect(metric(text, name, `pod="busy-node"`, `namespace="default"`) >= 0, "metrics/cadvisor has no %s of the pod", name)
	}
	used := metric(text, "container_cpu_usage_seconds_total", `pod="busy-node"`, `container="main"`)
	t.expect(used > 0.1, "container_cpu_usage_seconds_total is %v", used)
	limit := metric(text, "container_spec_memory_limit_bytes", `pod="busy-node"`, `container="main"`)
	t.expect(limit == 64<<20, "container_spec_memory_limit_bytes is %v", limit)
}

// evented: changes reach kubelet by events: it relists every 300 s only, so what is seen sooner came by one.
func evented(t *T) {
	t.run(once("short", sh("main", "sleep 2")), pod("crashes", sh("main", "sleep 1; exit 1")), pod("stays", sh("main", idle)))
	t.wait("short", "succeeded", succeeded)
	t.wait("crashes", "restarted twice", func(p *v1.Pod) bool { return status(p, "main").RestartCount >= 2 })
	t.ready("stays")
	t.delete("crashes", "short")
	text, err := t.API.Get(t.Ctx, "/metrics")
	t.Must(err)
	t.expect(metric(text, "kubelet_evented_pleg_connection_success_count") >= 1, "no connection for events: %v", metric(text, "kubelet_evented_pleg_connection_success_count"))
	t.expect(metric(text, "kubelet_evented_pleg_connection_error_count") <= 0, "failed connections for events")
	// The stream ends with the daemon; kubelet connects again and goes on seeing ends.
	t.Must(t.Runtime.Stop(9))
	t.Must(t.StartRuntime(t.Ctx))
	t.run(once("after", sh("main", "sleep 1")))
	t.wait("after", "succeeded", succeeded)
	t.expect(status(t.pod("stays"), "main").RestartCount == 0, "a running pod was restarted")
}
