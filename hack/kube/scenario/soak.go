package scenario

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"slipway/hack/kube/node"
)

// Most pods at a time beside those that are going (kubelet removes dead sandboxes once a minute), how often one comes or
// goes, and how long one may take to do what it is there for, or to go; a shared machine is the measure.
const (
	soakCrowd    = 20
	soakBeat     = 700 * time.Millisecond
	soakPatience = 4 * time.Minute
)

// kinds of pods that come and go; each holds when it has done what it is there for.
var soakKinds = []struct {
	name  string
	make  func(name string) *v1.Pod
	holds func(*v1.Pod) bool
}{
	{"idle", func(name string) *v1.Pod { return pod(name, sh("main", idle)) }, ready},
	{"http", func(name string) *v1.Pod {
		c := witness("main", "serve")
		c.ReadinessProbe, c.LivenessProbe = every(2, httpGet("/healthz", 8080)), every(5, httpGet("/healthz", 8080))
		c.LivenessProbe.FailureThreshold = 10
		return pod(name, c)
	}, ready},
	{"exec", func(name string) *v1.Pod {
		c := sh("main", idle)
		c.ReadinessProbe = every(2, execProbe("true"))
		return pod(name, c)
	}, ready},
	{"crash", func(name string) *v1.Pod { return pod(name, sh("main", "sleep 1; exit 3")) }, func(p *v1.Pod) bool {
		last := status(p, "main").LastTerminationState.Terminated
		return status(p, "main").RestartCount >= 2 && last != nil && last.ExitCode == 3
	}},
	{"oom", func(name string) *v1.Pod {
		c := witness("main", "eat", "200")
		c.Resources.Limits = v1.ResourceList{v1.ResourceMemory: resource.MustParse("24Mi")}
		return pod(name, c)
	}, func(p *v1.Pod) bool {
		last := status(p, "main").LastTerminationState.Terminated
		return last != nil && last.Reason == "OOMKilled"
	}},
	{"once", func(name string) *v1.Pod { return once(name, sh("main", "echo done; sleep 1")) }, succeeded},
	{"init", func(name string) *v1.Pod {
		p := withWork(pod(name, sh("main", "cat /work/x; "+idle), sh("other", idle)))
		p.Spec.InitContainers = []v1.Container{sh("init", "echo x > /work/x")}
		p.Spec.InitContainers[0].VolumeMounts = p.Spec.Containers[0].VolumeMounts
		return p
	}, ready},
	{"deaf", func(name string) *v1.Pod { return pod(name, sh("main", "trap '' TERM; while :; do sleep 1; done")) }, ready},
	{"logs", func(name string) *v1.Pod { return pod(name, witness("main", "count", "20")) }, ready},
}

// soaked is a pod of the soak: since when it is there, or is to be gone.
type soaked struct {
	kind   int
	since  time.Time
	proven bool
	going  bool
	// hasty: it goes so soon, whether it has done what it is there for or not; zero: not before.
	hasty time.Duration
}

type soak struct {
	*T
	pods map[string]*soaked
	made int
}

// Soak lets pods of all kinds come and go for so long, beside one that must never be touched; then everything must be
// gone and the runtime's memory and descriptors as they were after a third of the time.
func Soak(ctx context.Context, length time.Duration) (err error) {
	n, err := node.Start(ctx, sharedNode())
	if err != nil {
		return err
	}
	defer func() {
		if f, failed := recover().(failure); failed {
			err = f.error
		}
		err = errors.Join(err, n.Stop(context.WithoutCancel(ctx)))
		if err == nil {
			fmt.Println("nothing is left behind")
		}
	}()
	s := &soak{T: &T{Node: n, Ctx: ctx}, pods: map[string]*soaked{}}
	s.T.run(pod("stays", sh("main", idle)))
	stays := status(s.T.ready("stays"), "main").ContainerID
	s.churn(length / 3)
	warm := s.settle()
	fmt.Println("after a third: ", warm)
	s.churn(length - length/3)
	end := s.settle()
	fmt.Println("at the end:    ", end)
	now := status(s.T.pod("stays"), "main")
	s.expect(now.ContainerID == stays && now.RestartCount == 0, "the pod that stays was restarted: %+v", now)
	fmt.Printf("%d pods came and went\n", s.made)
	s.T.delete("stays")
	return end.against(warm)
}

func (s *soak) churn(length time.Duration) {
	told := time.Now()
	for end := time.Now().Add(length); time.Now().Before(end); s.sleep(soakBeat) {
		s.observe()
		if staying := s.staying(); staying < 3 || staying < soakCrowd && rand.IntN(2) == 0 {
			s.come()
		} else {
			s.leave()
		}
		if time.Since(told) > time.Minute {
			staying := s.staying()
			fmt.Printf("%s: %d pods so far, %d now, %d going; %s\n", time.Now().Format(time.TimeOnly), s.made, staying,
				len(s.pods)-staying, s.usage())
			told = time.Now()
		}
	}
}

func (s *soak) staying() int {
	count := 0
	for _, p := range s.pods {
		if !p.going {
			count++
		}
	}
	return count
}

func (s *soak) come() {
	kind := rand.IntN(len(soakKinds))
	s.made++
	name := fmt.Sprintf("%s-%d", soakKinds[kind].name, s.made)
	s.T.run(soakKinds[kind].make(name))
	p := &soaked{kind: kind, since: time.Now()}
	if rand.IntN(10) == 0 {
		p.hasty = time.Duration(1 + rand.Int64N(int64(10*time.Second)))
	}
	s.pods[name] = p
}

// leave sends away one that has done its work, or a hasty one.
func (s *soak) leave() {
	for name, p := range s.pods {
		if !p.going && (p.proven || p.hasty > 0 && time.Since(p.since) > p.hasty) {
			s.Must(os.Remove(s.manifest(name)))
			p.going, p.since = true, time.Now()
			return
		}
	}
}

// observe takes note of who has done his work and who is gone, and fails on what takes too long.
func (s *soak) observe() {
	pods, err := s.API.Pods(s.Ctx)
	s.Must(err)
	seen := map[string]*v1.Pod{}
	for i := range pods {
		seen[strings.TrimSuffix(pods[i].Name, "-"+node.Name)] = &pods[i]
	}
	alive := s.sandboxes()
	for name, p := range s.pods {
		here := seen[name]
		switch {
		case p.going && here == nil && !slices.Contains(alive, name):
			delete(s.pods, name)
		case !p.going && here != nil && soakKinds[p.kind].holds(here):
			p.proven = true
		}
		if late := time.Since(p.since) > soakPatience; late && (p.going || !p.proven) {
			s.T.pods = []string{name}
			s.Fatalf("%s: going %v, still so after %v\n%s", name, p.going, soakPatience, s.describe())
		}
	}
}

// sandboxes are the pods that the runtime has, alive or not.
func (s *soak) sandboxes() []string {
	list, err := s.CRI.ListPodSandbox(s.Ctx, &cri.ListPodSandboxRequest{})
	s.Must(err)
	var names []string
	for _, item := range list.Items {
		names = append(names, strings.TrimSuffix(item.Metadata.Name, "-"+node.Name))
	}
	return names
}

// settle takes all away but the one that stays, and answers what the runtime uses then.
func (s *soak) settle() usage {
	for name, p := range s.pods {
		if !p.going {
			s.Must(os.Remove(s.manifest(name)))
			p.going, p.since = true, time.Now()
		}
	}
	for end := time.Now().Add(soakPatience); len(s.pods) > 0 || len(s.sandboxes()) > 1; s.sleep(time.Second) {
		s.observe()
		s.expect(time.Now().Before(end), "still there: %v", s.sandboxes())
	}
	s.sleep(5 * time.Second)
	return s.usage()
}

// usage is what daemon and keeper hold.
type usage struct {
	daemon, keeper           int64
	daemonFiles, keeperFiles int
	mounts                   int
}

func (s *soak) usage() usage {
	keeper := s.keeper()
	return usage{node.Memory(s.Runtime.Pid()), node.Memory(keeper), files(s.Runtime.Pid()), files(keeper), strings.Count(s.read("/proc/self/mounts"), "\n")}
}

func (u usage) String() string {
	return fmt.Sprintf("daemon %.1f MiB, %d files; keeper %.1f MiB, %d files; %d mounts", float64(u.daemon)/(1<<20), u.daemonFiles,
		float64(u.keeper)/(1<<20), u.keeperFiles, u.mounts)
}

// against an earlier one: memory may have grown by a little, nothing else.
func (u usage) against(before usage) error {
	const memory, few = 8 << 20, 4
	if u.daemon-before.daemon > memory || u.keeper-before.keeper > memory {
		return fmt.Errorf("memory is not flat: from %v to %v", before, u)
	}
	if u.daemonFiles-before.daemonFiles > few || u.keeperFiles-before.keeperFiles > few || u.mounts > before.mounts {
		return fmt.Errorf("descriptors or mounts leak: from %v to %v", before, u)
	}
	return nil
}

func files(pid int) int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries)
}
