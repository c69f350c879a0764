package scenario

import (
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	grpc "google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// soundCRI looks at what kubelet itself relies on without saying so (CRI-CSTAT-02, -05, -09, CRI-GEN-13).
func soundCRI(t *T) {
	t.run(pod("sound", sh("main", idle), sh("crashes", "exit 1")))
	t.wait("sound", "seen with a restart", func(p *v1.Pod) bool { return status(p, "crashes").RestartCount > 0 })
	t.checkCRI()
}

// checkCRI fails on anything in the runtime's lists that has led a kubelet astray somewhere: an empty or relative log
// path (a kubelet once removed / for it), times that cannot be, a container without its sandbox.
func (t *T) checkCRI() {
	sandboxes, err := t.CRI.ListPodSandbox(t.Ctx, &cri.ListPodSandboxRequest{})
	t.Must(err)
	known := map[string]bool{}
	for _, s := range sandboxes.Items {
		known[s.Id] = true
		t.expect(s.CreatedAt > 0 && s.Metadata.Uid != "", "sandbox %+v", s)
	}
	containers, err := t.CRI.ListContainers(t.Ctx, &cri.ListContainersRequest{})
	t.Must(err)
	t.expect(len(known) > 0 && len(containers.Containers) > 0, "an empty list: %d sandboxes, %d containers", len(known), len(containers.Containers))
	for _, c := range containers.Containers {
		answer, err := t.CRI.ContainerStatus(t.Ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
		if notFound(err) {
			continue // removed meanwhile
		}
		t.Must(err)
		s := answer.Status
		t.expect(known[c.PodSandboxId] || t.isNew(c.PodSandboxId), "container %s has no sandbox %s", c.Id, c.PodSandboxId)
		t.expect(filepath.IsAbs(s.LogPath) && filepath.Base(s.LogPath) != "/", "log path %q of %s", s.LogPath, c.Id)
		t.expect(s.CreatedAt > 0 && s.CreatedAt <= time.Now().UnixNano(), "created at %d", s.CreatedAt)
		if s.State == cri.ContainerState_CONTAINER_EXITED {
			t.expect(s.FinishedAt >= s.StartedAt && s.FinishedAt > 0 && s.Reason != "", "an end without time or reason: %+v", s)
		} else {
			t.expect(s.FinishedAt == 0, "%v with an end: %+v", s.State, s)
		}
	}
}

// isNew: a sandbox that came between the two lists.
func (t *T) isNew(id string) bool {
	_, err := t.CRI.PodSandboxStatus(t.Ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	return err == nil
}

func notFound(err error) bool { return grpc.Code(err) == codes.NotFound }
