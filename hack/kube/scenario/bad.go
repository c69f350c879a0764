package scenario

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

var bad = []Scenario{
	{Name: "pods that cannot start say why", Run: cannotStart},
	{Name: "a flood of logs leaves neighbours healthy", Run: func(t *T) { neighbours(t, "floods", witness("main", "flood"), nil) }},
	{Name: "eating memory leaves neighbours healthy", Run: func(t *T) {
		neighbours(t, "eats", witness("main", "eat", "4096"), v1.ResourceList{v1.ResourceMemory: resource.MustParse("48Mi")})
	}},
	{Name: "forking without end leaves neighbours healthy", Own: forkLimited(), Run: func(t *T) { neighbours(t, "forks", witness("main", "fork"), nil) }},
}

// cannotStart: what an operator reads in the status must be enough to act on.
func cannotStart(t *T) {
	cases := []struct {
		name    string
		change  func(*v1.Pod, *v1.Container)
		reasons string
		words   []string
	}{
		{"bad-command", func(p *v1.Pod, c *v1.Container) { c.Command = []string{"/no/such"} }, "RunContainerError CreateContainerError StartError CrashLoopBackOff", []string{"/no/such", "no such file"}},
		{"bad-exec", func(p *v1.Pod, c *v1.Container) { c.Command = []string{"/etc/passwd"} }, "RunContainerError CreateContainerError StartError CrashLoopBackOff", []string{"/etc/passwd", "ermission denied"}},
		{"bad-dir", func(p *v1.Pod, c *v1.Container) { c.WorkingDir = "/etc/passwd/x" }, "RunContainerError CreateContainerError StartError CrashLoopBackOff", []string{"/etc/passwd"}},
		{"bad-image-name", func(p *v1.Pod, c *v1.Container) { c.Image = "UPPER::case" }, "InvalidImageName", []string{"UPPER::case"}},
		{"bad-image", func(p *v1.Pod, c *v1.Container) {
			c.Image, c.ImagePullPolicy = "127.0.0.1:9/nobody/here:1", v1.PullAlways
		}, "ErrImagePull ImagePullBackOff", []string{"127.0.0.1:9"}},
		{"bad-volume", func(p *v1.Pod, c *v1.Container) {
			withVolume(p, "gone", "/gone", v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/no/such/path", Type: ptr(v1.HostPathDirectory)}})
		}, "", nil},
		{"bad-seccomp", func(p *v1.Pod, c *v1.Container) {
			c.SecurityContext = &v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr("nowhere.json")}}
		}, "CreateContainerError", []string{"nowhere.json"}},
		{"bad-limit", func(p *v1.Pod, c *v1.Container) {
			c.Resources.Limits = v1.ResourceList{v1.ResourceMemory: resource.MustParse("4Ki")}
		}, "RunContainerError CreateContainerError StartError CrashLoopBackOff OOMKilled", []string{"memory", "OOM", "oom"}},
	}
	for _, c := range cases {
		p := pod(c.name, sh("main", idle))
		c.change(p, &p.Spec.Containers[0])
		t.run(p)
	}
	for _, c := range cases {
		if c.words == nil {
			p := t.wait(c.name, "known", func(p *v1.Pod) bool { return len(p.Status.Conditions) > 0 })
			t.expect(!ready(p), "%s is ready", c.name)
			continue
		}
		t.wait(c.name, fmt.Sprintf("in %s, saying %q", c.reasons, c.words), func(p *v1.Pod) bool {
			s := status(p, "main")
			return told(s.State, c.reasons, c.words) || told(s.LastTerminationState, c.reasons, c.words)
		})
	}
	// What the runtime refused must not be left half-made.
	t.checkCRI()
}

func told(s v1.ContainerState, reasons string, words []string) bool {
	reason, message := "", ""
	switch {
	case s.Waiting != nil:
		reason, message = s.Waiting.Reason, s.Waiting.Message
	case s.Terminated != nil:
		reason, message = s.Terminated.Reason, s.Terminated.Reason+" "+s.Terminated.Message
	}
	if reason == "" || !strings.Contains(reasons, reason) {
		return false
	}
	for _, word := range words {
		if strings.Contains(message, word) {
			return true
		}
	}
	return false
}

// neighbours: beside a pod that misbehaves, one that is probed each second stays ready, its log whole, and new pods
// start; then the culprit can be deleted.
func neighbours(t *T, culprit string, c v1.Container, limits v1.ResourceList) {
	c.Resources.Limits = limits
	calm := witness("main", "serve")
	calm.ReadinessProbe = every(1, httpGet("/healthz", 8080))
	calm.ReadinessProbe.FailureThreshold = 3
	t.run(pod("beside-"+culprit, calm))
	t.ready("beside-" + culprit)
	t.run(pod(culprit, c))
	t.wait(culprit, "started", func(p *v1.Pod) bool {
		s := status(p, "main")
		return s.State.Running != nil || s.LastTerminationState.Terminated != nil
	})
	for end := time.Now().Add(12 * time.Second); time.Now().Before(end); {
		t.expect(ready(t.pod("beside-"+culprit)), "the neighbour became unready")
		t.sleep(500 * time.Millisecond)
	}
	t.run(once("after-"+culprit, sh("main", "echo fine")))
	t.expect(t.output("after-"+culprit, "main") == "fine\n", "a new pod's output is wrong")
	t.delete(culprit)
	s := status(t.pod("beside-"+culprit), "main")
	t.expect(s.RestartCount == 0, "the neighbour was restarted")
}
