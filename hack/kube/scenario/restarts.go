package scenario

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"slipway/hack/kube/node"
)

var restarts = []Scenario{
	{Name: "restarts and kills under 50 logging pods", Own: &node.Options{API: true, Kubelet: rotates, OwnBinaries: true}, Run: survive},
	{Name: "the same with evented PLEG", Own: &node.Options{API: true, Kubelet: rotatesEvented, OwnBinaries: true}, Run: survive},
	{Name: "100 pods at once", Own: &node.Options{}, Run: crowd},
}

// rotates: logs are rotated all the time, and no rotated one is thrown away.
func rotates(config *kubeletconfig.KubeletConfiguration) {
	config.ContainerLogMaxSize, config.ContainerLogMaxFiles = "4Ki", ptr(int32(1000))
}

func rotatesEvented(config *kubeletconfig.KubeletConfiguration) {
	rotates(config)
	gate(config, "EventedPLEG", "PLEGOnDemandRelist")
}

// blow is something that happens to the node while its pods run.
type blow struct {
	name string
	deal func(*T)
}

var blows = []blow{
	{"kill -9 of the daemon", func(t *T) {
		t.Must(t.Runtime.Stop(syscall.SIGKILL))
		t.sleep(3 * time.Second)
		t.Must(t.StartRuntime(t.Ctx))
	}},
	{"restart of the daemon", func(t *T) {
		t.Must(t.Runtime.Stop(syscall.SIGTERM))
		t.Must(t.StartRuntime(t.Ctx))
	}},
	{"kill -9 of the keeper", func(t *T) {
		before := t.keeper()
		t.Must(syscall.Kill(before, syscall.SIGKILL))
		t.until(30*time.Second, func() bool { return t.keeper() != before }, "no new keeper")
	}},
	{"kill -9 of kubelet", func(t *T) {
		t.Must(t.Kubelet.Stop(syscall.SIGKILL))
		t.Must(t.StartKubelet(t.Ctx))
	}},
	{"restart of kubelet", func(t *T) {
		t.Must(t.Kubelet.Stop(syscall.SIGTERM))
		t.Must(t.StartKubelet(t.Ctx))
	}},
	{"upgrade of daemon, keeper and guardian", func(t *T) {
		t.Must(t.Install())
		t.Must(t.Runtime.Stop(syscall.SIGTERM))
		t.Must(t.StartRuntime(t.Ctx))
		t.until(60*time.Second, func() bool {
			told := t.told()
			return t.Runs(t.Runtime.Pid(), node.Daemon) && t.Runs(told.KeeperPid, node.Keeper) && t.Runs(told.GuardianPid, node.Keeper)
		}, "the old programs run on: %s", lazy(func() string { return fmt.Sprintf("%+v", t.told()) }))
	}},
	{"kill -9 of kubelet, daemon and keeper", func(t *T) {
		keeper := t.keeper()
		t.Must(t.Kubelet.Stop(syscall.SIGKILL))
		t.Must(t.Runtime.Stop(syscall.SIGKILL))
		t.Must(syscall.Kill(keeper, syscall.SIGKILL))
		t.Must(t.StartRuntime(t.Ctx))
		t.Must(t.StartKubelet(t.Ctx))
	}},
}

// told is what the daemon tells of the parent of all containers and of its guardian; zeros: it does not answer.
func (t *T) told() (told struct{ KeeperPid, GuardianPid int }) {
	answer, err := t.CRI.Status(t.Ctx, &cri.StatusRequest{Verbose: true})
	if err == nil {
		_ = json.Unmarshal([]byte(answer.Info["keeper"]), &told)
	}
	return told
}

// keeper is the pid of the parent of all containers.
func (t *T) keeper() int { return t.told().KeeperPid }

// loggers is how many pods log: 50, or SLIPWAY_KUBE_LOGGERS on a small machine.
func loggers() int {
	if count, err := strconv.Atoi(os.Getenv("SLIPWAY_KUBE_LOGGERS")); err == nil && count > 0 {
		return count
	}
	return 50
}

func survive(t *T) {
	count := loggers()
	var names []string
	for i := range count {
		c := witness("main", "count", "100")
		c.ReadinessProbe = every(10, execProbe("test", "-e", "/witness"))
		c.ReadinessProbe.TimeoutSeconds = 60 // a slow machine is no unready pod
		name := fmt.Sprintf("log-%02d", i)
		// A kubelet without API server forgets at its end who was ready: these have one, which keeps their status.
		t.give(pod(name, c))
		names = append(names, name)
	}
	for _, name := range names {
		t.waitFor(4*time.Minute, name, "ready", ready)
	}
	witnessed := t.watch(names)
	for _, b := range blows {
		b.deal(t)
		t.sleep(8 * time.Second)
		faults := witnessed.faults()
		t.expect(len(faults) == 0, "%s:\n%s", b.name, strings.Join(faults, "\n"))
	}
	witnessed.stop()
	t.sleep(2 * time.Second)
	for _, name := range names {
		t.wholeLog(name)
	}
	t.take(names...)
}

// wholeLog expects it of a log that may be rotated at any moment: once in several looks, for what is lost stays so.
func (t *T) wholeLog(name string) {
	var err error
	t.until(20*time.Second, func() bool {
		err = t.logIsWhole(name)
		return err == nil
	}, "%s", lazy(func() string { return fmt.Sprint(err) }))
}

// logIsWhole reads the log's file, and what was rotated away, and expects each line once, up to now.
func (t *T) logIsWhole(name string) error {
	// A kubelet that has just begun may not know its pods yet.
	running := status(t.pod(name), "main").State.Running
	if running == nil {
		return fmt.Errorf("%s: kubelet does not know it as running", name)
	}
	files, err := logFiles(t.logDir(name))
	if err != nil {
		return err
	}
	next := 1
	for _, file := range files {
		text, err := readLog(file)
		if err != nil {
			return err
		}
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); next++ {
			_, text, _ := strings.Cut(lines.Text(), " stdout F ")
			if wanted := fmt.Sprintf("line %d", next); text != wanted {
				return fmt.Errorf("%s: %q in %s where %q was expected", name, lines.Text(), file, wanted)
			}
		}
	}
	if len(files) < 2 {
		return fmt.Errorf("%s: its log was never rotated", name)
	}
	if ran := time.Since(running.StartedAt.Time); float64(next) < ran.Seconds()*2 {
		return fmt.Errorf("%s: only %d lines in %v", name, next, ran)
	}
	return nil
}

// logFiles of a container from the oldest to the one written now. While kubelet compresses one there are two of it, or
// a temporary file beside it.
func logFiles(dir string) ([]string, error) {
	found, err := filepath.Glob(dir + "/0.log*")
	if err != nil || len(found) == 0 {
		return nil, fmt.Errorf("no log in %s (%w)", dir, err)
	}
	var files []string
	for _, file := range found {
		file = strings.TrimSuffix(file, ".gz")
		if !strings.HasSuffix(file, ".tmp") && !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	slices.Sort(files)
	return append(files[1:], files[0]), nil // rotated ones carry a time behind the name
}

// readLog reads a file, or what kubelet has made of it by compression.
func readLog(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		file += ".gz"
		data, err = os.ReadFile(file)
	}
	if err != nil || !strings.HasSuffix(file, ".gz") {
		return data, err
	}
	plain, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return io.ReadAll(plain)
}

// watched is what was seen of pods that should not change.
type watched struct {
	stop  context.CancelFunc
	mutex sync.Mutex
	seen  []string
}

func (w *watched) note(format string, args ...any) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if text := fmt.Sprintf(format, args...); len(w.seen) < 20 && !slices.Contains(w.seen, text) {
		w.seen = append(w.seen, text)
	}
}

func (w *watched) faults() []string {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return slices.Clone(w.seen)
}

// watch looks at kubelet's and the runtime's view several times a second until it is stopped. Either may be down; what
// it must never do is say something wrong.
func (t *T) watch(names []string) *watched {
	ctx, stop := context.WithCancel(t.Ctx)
	w := &watched{stop: stop}
	ids := map[string]string{}
	for _, name := range names {
		ids[node.PodName(name)] = status(t.pod(name), "main").ContainerID
	}
	go func() {
		for ctx.Err() == nil {
			t.watchKubelet(ctx, w, ids)
			t.watchRuntime(ctx, w, len(names))
			time.Sleep(250 * time.Millisecond)
		}
	}()
	return w
}

func (t *T) watchKubelet(ctx context.Context, w *watched, ids map[string]string) {
	pods, err := t.API.Pods(ctx)
	if err != nil {
		return
	}
	for i := range pods {
		p := &pods[i]
		s := status(p, "main")
		if ids[p.Name] == "" || s.ContainerID == "" {
			continue // a kubelet that has just begun has no status yet
		}
		if s.RestartCount != 0 || s.ContainerID != ids[p.Name] || s.State.Running == nil {
			state, _ := json.Marshal(s.State)
			w.note("kubelet: %s: restarts %d, state %s", p.Name, s.RestartCount, state)
		} else if !ready(p) {
			w.note("kubelet: %s is not ready", p.Name)
		}
	}
}

func (t *T) watchRuntime(ctx context.Context, w *watched, count int) {
	sandboxes, err := t.CRI.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return
	}
	alive := 0
	for _, s := range sandboxes.Items {
		if s.State == cri.PodSandboxState_SANDBOX_READY {
			alive++
		}
	}
	if alive != count {
		w.note("runtime: %d sandboxes are ready, of %d", alive, count)
	}
	containers, err := t.CRI.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return
	}
	alive = 0
	for _, c := range containers.Containers {
		if c.State == cri.ContainerState_CONTAINER_RUNNING {
			alive++
		}
	}
	if alive != count {
		w.note("runtime: %d containers run, of %d", alive, count)
	}
}

// crowd: 100 pods given at once all become ready, are told right, and go.
func crowd(t *T) {
	var names []string
	var pods []*v1.Pod
	for i := range 100 {
		names = append(names, fmt.Sprintf("crowd-%02d", i))
		pods = append(pods, pod(names[i], sh("main", "exec sleep 100000")))
	}
	t.run(pods...)
	addresses := map[string]bool{}
	for _, name := range names {
		addresses[t.waitFor(4*time.Minute, name, "ready", ready).Status.PodIP] = true
	}
	t.expect(len(addresses) == len(names), "%d addresses for %d pods", len(addresses), len(names))
	t.checkCRI()
	t.delete(names...)
}
