package scenario

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"slipway/hack/kube/node"
)

// managed is what a kubelet does only for the pods of an API server, or when the machine goes down.
var managed = []Scenario{
	{Name: "recursive read-only mounts", Own: &node.Options{API: true}, Run: recursiveReadOnly},
	{Name: "eviction under disk pressure", Own: &node.Options{API: true, SmallDisk: 128 << 20, Kubelet: eagerEviction}, Run: eviction},
	{Name: "in-place resize", Own: &node.Options{API: true}, Run: resize},
	{Name: "node shutdown", Own: &node.Options{Logind: true, Kubelet: gracefulShutdown}, Run: nodeShutdown},
}

// give hands pods over by the API, where they may be evicted and changed; kubelet's name for them is that of a static
// one, so that t.pod finds it.
func (t *T) give(pods ...*v1.Pod) {
	for _, p := range pods {
		if !slices.Contains(t.pods, p.Name) {
			t.pods = append(t.pods, p.Name)
		}
		p = p.DeepCopy()
		p.Name, p.UID = node.PodName(p.Name), types.UID("uid-"+p.Name)
		t.Must(t.StandIn.Put(p))
	}
}

// take deletes given pods and waits until kubelet has let them go.
func (t *T) take(names ...string) {
	for _, name := range names {
		t.StandIn.Delete(node.PodName(name), 2)
	}
	for _, name := range names {
		t.until(90*time.Second, func() bool {
			p, err := t.StandIn.Pod(node.PodName(name))
			t.Must(err)
			return p == nil && !t.alive(name)
		}, "%s is not deleted", name)
	}
}

// evicted waits until the pod has been, and answers the message.
func (t *T) evicted(name string) string {
	p := t.waitFor(3*time.Minute, name, "evicted", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed && p.Status.Reason == "Evicted" })
	return p.Status.Message
}

// eviction: the one that fills the disk goes, by what the runtime says that it uses, and its neighbours stay; as goes
// who writes more than its own limit into its layer or its log.
func eviction(t *T) {
	// Killed for good: kubelet calls a pod whose containers end with 0 succeeded, evicted or not.
	const deaf = "exec sleep 100000"
	t.give(pod("modest", sh("main", idle)))
	t.ready("modest")
	over := sh("main", "dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; "+deaf)
	over.Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse("4Mi")}
	t.give(pod("over-limit", over))
	said := t.evicted("over-limit")
	t.expect(strings.Contains(said, "ephemeral") && strings.Contains(said, "4Mi"), "over its limit: %q", said)
	t.give(pod("greedy", sh("main", "sleep 2; dd if=/dev/zero of=/big bs=1M count=85 2>/dev/null; "+deaf)))
	said = t.evicted("greedy")
	t.expect(strings.Contains(said, "ephemeral-storage") && strings.Contains(said, "main was using"), "greedy: %q", said)
	t.until(90*time.Second, func() bool { return t.free() > 0.5 }, "the space does not come back: %s", lazy(func() string { return fmt.Sprint(t.free()) }))
	s := status(t.pod("modest"), "main")
	t.expect(s.State.Running != nil && s.RestartCount == 0, "the modest one was hit: %+v", s)
	t.until(90*time.Second, func() bool {
		t.give(once("after", sh("main", "echo fine")))
		p := t.pod("after")
		if p != nil && failed(p) { // refused as long as the pressure is believed to last
			t.take("after")
		}
		return p != nil && succeeded(p)
	}, "no new pod runs after the pressure")
	t.take("modest", "over-limit", "greedy", "after")
}

// resize: more and less CPU and memory reach the running container, which is not restarted (CRI-UPD), and status tells
// what it has.
func resize(t *T) {
	sized := func(cpu, memory string) *v1.Pod {
		c := sh("main", idle)
		list := v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory)}
		c.Resources = v1.ResourceRequirements{Limits: list, Requests: list}
		c.ResizePolicy = []v1.ContainerResizePolicy{
			{ResourceName: v1.ResourceCPU, RestartPolicy: v1.NotRequired}, {ResourceName: v1.ResourceMemory, RestartPolicy: v1.NotRequired}}
		return pod("sized", c)
	}
	t.give(sized("100m", "32Mi"))
	first := status(t.ready("sized"), "main")
	for _, size := range []struct{ cpu, memory, quota, bytes string }{
		{"300m", "32Mi", "30000", "33554432"}, {"300m", "64Mi", "30000", "67108864"}, {"200m", "48Mi", "20000", "50331648"},
	} {
		t.give(sized(size.cpu, size.memory))
		t.wait("sized", "told as "+size.cpu+" "+size.memory, func(p *v1.Pod) bool {
			r := status(p, "main").Resources
			return r != nil && r.Limits.Cpu().String() == size.cpu && r.Limits.Memory().String() == size.memory
		})
		got := strings.Fields(t.execSync("sized", "main", "sh", "-c",
			"cd /sys/fs/cgroup; cat cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes 2>/dev/null || cat cpu.max memory.max"))
		t.expect(len(got) >= 2 && got[0] == size.quota && got[len(got)-1] == size.bytes, "%s %s: the control group has %v", size.cpu, size.memory, got)
	}
	s := status(t.pod("sized"), "main")
	t.expect(s.RestartCount == 0 && s.ContainerID == first.ContainerID, "restarted by a resize: %+v", s)
	t.take("sized")
}

func gracefulShutdown(config *kubeletconfig.KubeletConfiguration) {
	config.ShutdownGracePeriod = metav1.Duration{Duration: 40 * time.Second}
	config.ShutdownGracePeriodCriticalPods = metav1.Duration{Duration: 20 * time.Second}
}

// nodeShutdown: logind announces one; kubelet ends all pods in order, each with its preStop hook and its signal, and
// only then lets the machine go down.
func nodeShutdown(t *T) {
	polite := sh("main", `trap 'sleep 1; echo term >> /out/order; exit 0' TERM; while :; do sleep 0.1; done`)
	polite.Lifecycle = &v1.Lifecycle{PreStop: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"sh", "-c", "echo prestop >> /out/order"}}}}
	p := pod("polite", polite)
	p.Spec.TerminationGracePeriodSeconds = ptr(int64(15))
	out := t.hostVolume(p, "out")
	t.run(p, pod("deaf", sh("main", "trap '' TERM; while :; do sleep 1; done")))
	t.ready("polite")
	t.ready("deaf")
	t.Must(t.Logind.Shutdown(time.Minute))
	order := t.read(out + "/order")
	t.expect(order == "prestop\nterm\n", "order: %q", order)
	for _, name := range []string{"polite", "deaf"} {
		p := t.wait(name, "told as ended by the shutdown", func(p *v1.Pod) bool { return ended(p) && p.Status.Reason == "Terminated" })
		t.expect(strings.Contains(p.Status.Message, "shutdown"), "%s: %q", name, p.Status.Message)
		for _, state := range t.containersOf(name) {
			t.expect(state == "CONTAINER_EXITED", "%s: %s", name, state)
		}
	}
}

func recursiveReadOnly(t *T) {
	dir := t.Path("rro")
	t.Must(os.MkdirAll(dir+"/below", 0o755))
	t.Must(syscall.Mount("below", dir+"/below", "tmpfs", 0, ""))
	defer func() { _ = syscall.Unmount(dir+"/below", syscall.MNT_DETACH) }()
	script := "touch /data/x 2>&1; touch /data/below/x 2>&1 && echo written below; true"
	for name, recursive := range map[string]v1.RecursiveReadOnlyMode{"plain": v1.RecursiveReadOnlyDisabled, "whole": v1.RecursiveReadOnlyEnabled} {
		p := once("rro-"+name, sh("main", script))
		withVolume(p, "data", "/data", v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: dir}})
		m := &p.Spec.Containers[0].VolumeMounts[0]
		m.ReadOnly, m.RecursiveReadOnly = true, &recursive
		t.run(p)
	}
	plain, whole := t.output("rro-plain", "main"), t.output("rro-whole", "main")
	t.expect(plain == "touch: /data/x: Read-only file system\nwritten below\n", "plain: %q", plain)
	t.expect(whole == "touch: /data/x: Read-only file system\ntouch: /data/below/x: Read-only file system\n", "recursive: %q", whole)
	told := status(t.pod("rro-whole"), "main").VolumeMounts
	t.expect(len(told) == 1 && told[0].RecursiveReadOnly != nil && *told[0].RecursiveReadOnly == v1.RecursiveReadOnlyEnabled, "status: %+v", told)
}
