package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"

	"slipway/hack/kube/node"
)

func sharedNode() node.Options {
	return node.Options{Images: []string{"busybox", "witness", "users"}, Kubelet: func(config *kubeletconfig.KubeletConfiguration) {
		shortBackOff(config)
		gate(config, "ContainerStopSignals")
		// Small enough that a test sees logs rotated.
		config.ContainerLogMaxSize, config.ContainerLogMaxFiles = "64Ki", ptr(int32(10))
	}}
}

// shortBackOff keeps what restarts from being waited for.
func shortBackOff(config *kubeletconfig.KubeletConfiguration) {
	config.CrashLoopBackOff.MaxContainerRestartPeriod = &metav1.Duration{Duration: 4 * time.Second}
	gate(config, "KubeletCrashLoopBackOffMax")
}

func gate(config *kubeletconfig.KubeletConfiguration, names ...string) {
	if config.FeatureGates == nil {
		config.FeatureGates = map[string]bool{}
	}
	for _, name := range names {
		config.FeatureGates[name] = true
	}
}

func pod(name string, containers ...v1.Container) *v1.Pod {
	return &v1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: v1.PodSpec{
			Containers:                    containers,
			TerminationGracePeriodSeconds: ptr(int64(2)),
		},
	}
}

// once is a pod whose containers are not restarted.
func once(name string, containers ...v1.Container) *v1.Pod {
	p := pod(name, containers...)
	p.Spec.RestartPolicy = v1.RestartPolicyNever
	return p
}

func image(name string) string { return node.Image(name) }

// sh is a container that runs a shell script.
func sh(name, script string) v1.Container {
	return v1.Container{Name: name, Image: image("busybox"), ImagePullPolicy: v1.PullNever, Command: []string{"sh", "-c", script}}
}

// witness is a container that runs the witness.
func witness(name string, args ...string) v1.Container {
	return v1.Container{Name: name, Image: image("witness"), ImagePullPolicy: v1.PullNever, Command: append([]string{"/witness"}, args...)}
}

// idle sleeps and goes when it is told to.
const idle = "trap 'exit 0' TERM; while :; do sleep 0.2; done"

func ptr[V any](v V) *V { return &v }

// run gives the pod to kubelet; it is deleted at the scenario's end.
func (t *T) run(pods ...*v1.Pod) {
	for _, p := range pods {
		text := t.marshal(p)
		name := p.Name
		temporary := t.Path("manifest." + name)
		t.Must(os.WriteFile(temporary, text, 0o644))
		t.Must(os.Rename(temporary, t.manifest(name)))
		if !slices.Contains(t.pods, name) {
			t.pods = append(t.pods, name)
		}
	}
}

// marshal leaves out the status, which kubelet's decoder would take for one.
func (t *T) marshal(p *v1.Pod) []byte {
	text, err := json.Marshal(p)
	t.Must(err)
	var fields map[string]any
	t.Must(json.Unmarshal(text, &fields))
	delete(fields, "status")
	text, err = yaml.Marshal(fields)
	t.Must(err)
	return text
}

func (t *T) manifest(name string) string { return t.Path("manifests/" + name + ".yaml") }

// pod as kubelet has it now; nil: not known.
func (t *T) pod(name string) *v1.Pod {
	pods, err := t.API.Pods(t.Ctx)
	t.Must(err)
	for i := range pods {
		if pods[i].Name == node.PodName(name) {
			return &pods[i]
		}
	}
	return nil
}

// wait until the pod is as wanted, for a minute and a half.
func (t *T) wait(name, what string, holds func(*v1.Pod) bool) *v1.Pod {
	return t.waitFor(90*time.Second, name, what, holds)
}

func (t *T) waitFor(patience time.Duration, name, what string, holds func(*v1.Pod) bool) *v1.Pod {
	var last *v1.Pod
	t.until(patience, func() bool {
		last = t.pod(name)
		return last != nil && holds(last)
	}, "%s: not %s", name, what)
	return last
}

// until asks every 200 ms; gives up with the sentence.
func (t *T) until(patience time.Duration, holds func() bool, format string, args ...any) {
	for end := time.Now().Add(patience); !holds(); {
		if time.Now().After(end) {
			t.Fatalf(format+fmt.Sprintf(" within %v", patience), args...)
		}
		t.sleep(200 * time.Millisecond)
	}
}

func (t *T) sleep(d time.Duration) {
	select {
	case <-t.Ctx.Done():
		t.Fatalf("%w", t.Ctx.Err())
	case <-time.After(d):
	}
}

func ready(p *v1.Pod) bool {
	if p == nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

func succeeded(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded }
func failed(p *v1.Pod) bool    { return p.Status.Phase == v1.PodFailed }
func ended(p *v1.Pod) bool     { return succeeded(p) || failed(p) }

func (t *T) ready(name string) *v1.Pod { return t.wait(name, "ready", ready) }

// output is the whole log of a container of a pod that ended well.
func (t *T) output(name, container string) string {
	p := t.wait(name, "ended", ended)
	logs := t.logs(name, container)
	t.expect(succeeded(p), "%s: %s, its output:\n%s", name, p.Status.Phase, logs)
	return logs
}

// logs of a container as they are now.
func (t *T) logs(name, container string) string {
	text, err := t.API.Logs(t.Ctx, name, container, nil)
	t.Must(err)
	return text
}

// read a file of the node.
func (t *T) read(path string) string {
	text, err := os.ReadFile(path)
	t.Must(err)
	return string(text)
}

// id of a running container.
func (t *T) id(name, container string) string {
	_, id, _ := strings.Cut(status(t.pod(name), container).ContainerID, "://")
	t.expect(id != "", "%s/%s has no container id", name, container)
	return id
}

// execSync runs a command by the runtime's ExecSync, as probes and hooks do, and answers its standard output.
func (t *T) execSync(name, container string, command ...string) string {
	answer, err := t.CRI.ExecSync(t.Ctx, &cri.ExecSyncRequest{ContainerId: t.id(name, container), Cmd: command, Timeout: 20})
	t.Must(err)
	t.expect(answer.ExitCode == 0, "%q in %s/%s: exit code %d: %s%s", command, name, container, answer.ExitCode, answer.Stdout, answer.Stderr)
	return string(answer.Stdout)
}

// status of a container of any kind; never nil: one not started yet, or of a pod not known yet, is empty.
func status(p *v1.Pod, container string) v1.ContainerStatus {
	if p == nil {
		return v1.ContainerStatus{}
	}
	for _, s := range slices.Concat(p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses) {
		if s.Name == container {
			return s
		}
	}
	return v1.ContainerStatus{}
}

func running(p *v1.Pod, container string) bool { return status(p, container).State.Running != nil }

// delete takes pods away and waits until they have ended. Kubelet's list drops a static pod at once; its sandbox is
// stopped when its containers have ended.
func (t *T) delete(names ...string) {
	for _, name := range names {
		t.Must(os.Remove(t.manifest(name)))
	}
	for _, name := range names {
		t.until(90*time.Second, func() bool { return t.pod(name) == nil && !t.alive(name) }, "%s is not deleted", name)
		t.pods = slices.DeleteFunc(t.pods, func(p string) bool { return p == name })
	}
}

// alive tells whether the runtime has a sandbox of the pod that is not stopped.
func (t *T) alive(name string) bool {
	filter := &cri.PodSandboxFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.name": node.PodName(name)},
		State:         &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
	}
	list, err := t.CRI.ListPodSandbox(t.Ctx, &cri.ListPodSandboxRequest{Filter: filter})
	t.Must(err)
	return len(list.Items) > 0
}

// deleteAll also works after the scenario's own time is over.
func (t *T) deleteAll() (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Ctx), 2*time.Minute)
	defer cancel()
	t.Ctx = ctx
	defer func() {
		if f, failed := recover().(failure); failed {
			err = errors.Join(err, f.error)
		}
	}()
	left := slices.DeleteFunc(slices.Clone(t.pods), func(name string) bool {
		_, err := os.Stat(t.manifest(name))
		return err != nil
	})
	t.delete(left...)
	return nil
}

// describe is what a person would look at after a failure: the states of the scenario's pods, the ends of their logs.
func (t *T) describe() string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Ctx), 10*time.Second)
	defer cancel()
	pods, err := t.API.Pods(ctx)
	if err != nil {
		return fmt.Sprintf("(no pods: %v)\n%s\n%s", err, t.Kubelet.Tail(5), t.Runtime.Tail(5))
	}
	var text strings.Builder
	for _, p := range pods {
		if !slices.Contains(t.pods, strings.TrimSuffix(p.Name, "-"+node.Name)) {
			continue
		}
		fmt.Fprintf(&text, "%s: %s %s %s\n", p.Name, p.Status.Phase, p.Status.Reason, p.Status.Message)
		for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			state, _ := json.Marshal(s.State)
			fmt.Fprintf(&text, "  %s: ready %v, restarts %d, %s\n", s.Name, s.Ready, s.RestartCount, state)
		}
		if len(p.Status.ContainerStatuses) == 0 {
			conditions, _ := json.Marshal(p.Status.Conditions)
			fmt.Fprintf(&text, "  %s\n", conditions)
		}
	}
	return text.String()
}

func sorted(words []string) []string {
	slices.Sort(words)
	return words
}
