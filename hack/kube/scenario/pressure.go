package scenario

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"slipway/hack/kube/node"
)

var pressure = []Scenario{
	{Name: "disk pressure: the dead and the unused go", Own: &node.Options{SmallDisk: 128 << 20, Kubelet: eagerEviction}, Run: diskPressure},
	{Name: "a full disk: told, survived, healed", Own: &node.Options{SmallDisk: 64 << 20, Kubelet: noEviction}, Run: fullDisk},
	{Name: "many that ignore signals hold up nobody", Run: deafCrowd},
	{Name: "a storm of OOM kills", Run: oomStorm},
	{Name: "a flood of logs: bounded files, bounded keeper", Run: boundedFlood},
}

// eagerEviction: only the eviction manager clears up, and only below a third of free space.
func eagerEviction(config *kubeletconfig.KubeletConfiguration) {
	config.ImageGCHighThresholdPercent, config.ImageGCLowThresholdPercent = ptr(int32(100)), ptr(int32(99))
	config.ImageMinimumGCAge = metav1.Duration{Duration: time.Second}
	config.EvictionHard = map[string]string{"imagefs.available": "33%"}
	config.EvictionPressureTransitionPeriod = metav1.Duration{Duration: 5 * time.Second}
}

func noEviction(config *kubeletconfig.KubeletConfiguration) {
	config.ImageGCHighThresholdPercent, config.ImageGCLowThresholdPercent = ptr(int32(100)), ptr(int32(99))
	config.EvictionHard = map[string]string{"memory.available": "10Mi", "nodefs.available": "0%", "imagefs.available": "0%"}
	shortBackOff(config)
}

// free is the part of the runtime's file system that is free.
func (t *T) free() float64 {
	var fs syscall.Statfs_t
	t.Must(syscall.Statfs(t.Path("root"), &fs))
	return float64(fs.Bavail) / float64(fs.Blocks)
}

// diskPressure: the eviction manager sees the disk as the runtime tells it, has dead containers and unused images
// removed through CRI, and spares what runs. Static pods it never evicts (they are critical, and admitted under
// pressure), so what is left to see is the reclaiming.
func diskPressure(t *T) {
	// Dead layer and unused image both have to go: what remains is just under two thirds of the disk.
	t.run(pod("stays", sh("main", "dd if=/dev/zero of=/big bs=1M count=70 2>/dev/null; "+idle)))
	t.ready("stays")
	t.run(once("dead", sh("main", "dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null; echo written")))
	t.expect(t.output("dead", "main") == "written\n", "the dead one could not write")
	filled := t.free()
	if err := t.Import("nginx"); err != nil && !isFull(err) {
		t.Must(err)
	}
	t.until(3*time.Minute, func() bool { return t.free() > 0.33 && t.image("nginx") == nil && len(t.containersOf("dead")) == 0 },
		"not cleared: %s", lazy(func() string {
			return fmt.Sprintf("%.2f free (%.2f when filled), nginx %v, dead %v", t.free(), filled, t.image("nginx") != nil, t.containersOf("dead"))
		}))
	t.expect(strings.Contains(t.read(t.Path("kubelet.log")), "attempting to reclaim"), "the eviction manager did nothing")
	t.expect(t.image("busybox") != nil, "an image in use was removed")
	s := status(t.pod("stays"), "main")
	t.expect(s.State.Running != nil && s.RestartCount == 0, "the running pod was hit: %+v", s)
	t.run(once("after", sh("main", "echo fine")))
	t.expect(t.output("after", "main") == "fine\n", "no new pod runs after the pressure")
}

func isFull(err error) bool { return saysFull(err.Error()) }

func saysFull(text string) bool { return strings.Contains(strings.ToLower(text), "no space left") }

// kubeletSaid tells whether a line of kubelet's log names the pod and holds.
func (t *T) kubeletSaid(pod string, holds func(string) bool) bool {
	for _, line := range strings.Split(t.read(t.Path("kubelet.log")), "\n") {
		if strings.Contains(line, pod) && holds(line) {
			return true
		}
	}
	return false
}

// image is nil when the runtime has none of the name.
func (t *T) image(name string) *cri.Image {
	answer, err := t.Images.ImageStatus(t.Ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image(name)}})
	t.Must(err)
	return answer.Image
}

// containersOf are a pod's containers that the runtime lists, by their states.
func (t *T) containersOf(name string) []string {
	filter := &cri.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": node.PodName(name)}}
	list, err := t.CRI.ListContainers(t.Ctx, &cri.ListContainersRequest{Filter: filter})
	t.Must(err)
	var states []string
	for _, c := range list.Containers {
		states = append(states, c.State.String())
	}
	return states
}

// fullDisk: one pod fills the runtime's file system. Its neighbours run on and are probed, a new pod either starts or
// says why it cannot, deleting works, and then everything is as before.
func fullDisk(t *T) {
	calm := witness("main", "serve")
	calm.ReadinessProbe = every(1, execProbe("test", "-e", "/witness"))
	t.run(pod("beside", calm))
	t.ready("beside")
	t.run(pod("fills", sh("main", "dd if=/dev/zero of=/big bs=64k 2>&1 | grep -c 'No space'; "+idle)))
	t.until(90*time.Second, func() bool { return t.free() == 0 && strings.HasPrefix(t.logs("fills", "main"), "1") }, "the disk does not fill")
	t.run(pod("late", sh("main", idle)))
	// Where its sandbox already finds no room, kubelet tells it by an event, and in its log.
	t.until(90*time.Second, func() bool {
		s := status(t.pod("late"), "main")
		return s.State.Running != nil || s.State.Waiting != nil && saysFull(s.State.Waiting.Message) || t.kubeletSaid("late-node", saysFull)
	}, "the late one neither runs nor says that the disk is full")
	err := t.Import("redis")
	t.expect(err != nil && isFull(err), "an import without room: %v", err)
	s := status(t.pod("beside"), "main")
	t.expect(s.RestartCount == 0 && ready(t.pod("beside")), "the neighbour was hit: %+v", s)
	t.delete("fills")
	t.until(90*time.Second, func() bool { return t.free() > 0.3 }, "the space does not come back")
	t.ready("late")
	t.run(once("after", sh("main", "echo fine")))
	t.expect(t.output("after", "main") == "fine\n", "no new pod runs when there is room again")
	t.checkCRI()
}

// deafCrowd: ten pods that ignore every signal they can are deleted at once; a pod given meanwhile starts as ever, and
// all ten are gone soon after their grace of 5 s.
func deafCrowd(t *T) {
	var names []string
	for i := range 10 {
		name := fmt.Sprintf("deaf-%d", i)
		p := pod(name, sh("main", "trap '' TERM INT HUP QUIT USR1 USR2; while :; do sleep 1; done"))
		p.Spec.TerminationGracePeriodSeconds = ptr(int64(5))
		t.run(p)
		names = append(names, name)
	}
	for _, name := range names {
		t.ready(name)
	}
	for _, name := range names {
		t.Must(os.Remove(t.manifest(name)))
	}
	t.run(once("among-the-deaf", sh("main", "echo fine")))
	t.expect(t.output("among-the-deaf", "main") == "fine\n", "no new pod runs")
	for _, name := range names {
		t.until(90*time.Second, func() bool { return t.pod(name) == nil && !t.alive(name) }, "%s lives on", name)
	}
}

// oomStorm: five containers run into their limit again and again, each end is told as what it was, and who is probed
// beside them stays ready.
func oomStorm(t *T) {
	calm := witness("main", "serve")
	calm.ReadinessProbe = every(1, httpGet("/healthz", 8080))
	calm.ReadinessProbe.FailureThreshold = 3
	t.run(pod("beside-the-storm", calm))
	t.ready("beside-the-storm")
	for i := range 5 {
		eats := witness("main", "eat", "200")
		eats.Resources.Limits = v1.ResourceList{v1.ResourceMemory: resource.MustParse("24Mi")}
		t.run(pod(fmt.Sprintf("storm-%d", i), eats))
	}
	for i := range 5 {
		p := t.waitFor(2*time.Minute, fmt.Sprintf("storm-%d", i), "killed three times", func(p *v1.Pod) bool { return status(p, "main").RestartCount >= 3 })
		last := status(p, "main").LastTerminationState.Terminated
		t.expect(last != nil && last.Reason == "OOMKilled" && last.ExitCode == 137, "storm-%d: %+v", i, last)
	}
	s := status(t.pod("beside-the-storm"), "main")
	t.expect(ready(t.pod("beside-the-storm")) && s.RestartCount == 0, "the neighbour was hit: %+v", s)
}

// boundedFlood: kubelet's rotation bounds the files of a container that writes as fast as it can, and the keeper that
// writes them does not grow.
func boundedFlood(t *T) {
	before := node.Memory(t.keeper())
	t.run(pod("floods-on", witness("main", "flood")))
	t.ready("floods-on")
	t.sleep(30 * time.Second)
	grown := node.Memory(t.keeper()) - before
	t.expect(grown < 48<<20, "the keeper grew by %d MiB", grown>>20)
	dir := t.logDir("floods-on")
	t.until(90*time.Second, func() bool {
		files, err := os.ReadDir(dir)
		t.Must(err)
		return len(files) > 1 && len(files) <= 11 // ten, and the one being compressed
	}, "not rotated within the number of files: %s", dir)
	t.delete("floods-on")
}
