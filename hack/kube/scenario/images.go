package scenario

import (
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"slipway/hack/kube/node"
)

var images = []Scenario{
	{Name: "image volumes", Run: imageVolumes},
	{Name: "a private registry, pull policies", Own: &node.Options{Kubelet: shortBackOff}, Run: privateRegistry},
	{Name: "image policy, a registry that is not there", Own: &node.Options{RuntimeConfig: imagePolicy}, Run: refusedImages},
	{Name: "image garbage collection on a small disk", Own: &node.Options{SmallDisk: 96 << 20, Kubelet: eagerImageGC}, Run: imageGC},
}

func imageVolumes(t *T) {
	p := once("image-volume", sh("main", "ls /vol/witness /sub; touch /vol/x 2>&1; /vol/witness 2>&1 | head -1; true"))
	source := v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: image("witness"), PullPolicy: v1.PullNever}}
	withVolume(p, "vol", "/vol", source)
	p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, v1.VolumeMount{Name: "vol", MountPath: "/sub", SubPath: "etc"})
	t.run(p)
	logs := t.output("image-volume", "main")
	for _, wanted := range []string{"/vol/witness\n", "passwd\n", "touch: /vol/x: Read-only file system\n", "usage: witness"} {
		t.expect(strings.Contains(logs, wanted), "no %q in %q", wanted, logs)
	}
	bad := once("image-volume-bad", sh("main", "true"))
	withVolume(bad, "vol", "/vol", source)
	bad.Spec.Containers[0].VolumeMounts[0].SubPath = "not/there"
	t.run(bad)
	t.wait("image-volume-bad", "refused with a reason", func(p *v1.Pod) bool {
		w := status(p, "main").State.Waiting
		return w != nil && strings.Contains(w.Message, "not/there")
	})
}

func privateRegistry(t *T) {
	registry, err := t.StartRegistry(t.Ctx)
	t.Must(err)
	defer func() { t.Must(registry.Stop()) }()
	pulled := func(name, image string, policy v1.PullPolicy) *v1.Pod {
		c := sh("main", idle)
		c.Image, c.ImagePullPolicy = registry.Host+"/"+image, policy
		return pod(name, c)
	}
	t.run(pulled("private", "busybox:1", v1.PullIfNotPresent), pulled("missing", "no-such-thing:1", v1.PullAlways), pulled("never", "multi:1", v1.PullNever))
	t.waits("private", "ErrImagePull ImagePullBackOff", "user name and password", "401")
	t.waits("never", "ErrImageNeverPull", "not present")
	t.Must(t.LogIn(registry))
	t.Must(t.Kubelet.Stop(syscall.SIGTERM))
	t.Must(t.StartKubelet(t.Ctx))
	s := status(t.ready("private"), "main")
	t.expect(strings.Contains(s.ImageID, "sha256:") && strings.Contains(s.Image, "busybox"), "image %q, id %q", s.Image, s.ImageID)
	t.waits("missing", "ErrImagePull ImagePullBackOff", "not found", "NotFound", "unknown")
	t.run(pulled("zstd", "busybox:zstd", v1.PullAlways), pulled("index", "multi:1", v1.PullAlways))
	t.ready("zstd")
	t.ready("index")
	// Always asks the registry each time, and cannot without it; IfNotPresent needs it no more.
	t.Must(registry.Stop())
	t.run(pulled("again", "busybox:1", v1.PullIfNotPresent), pulled("always", "busybox:1", v1.PullAlways))
	t.ready("again")
	t.waits("always", "ErrImagePull ImagePullBackOff", "refused")
}

const imagePolicy = `[[images.policy]]
prefix = "127.0.0.1:9/banned"
rule = "reject"
`

// refusedImages: kubelet knows two errors of a runtime by their first word, and shows them as reasons of their own.
func refusedImages(t *T) {
	pulled := func(name, image string) *v1.Pod {
		c := sh("main", idle)
		c.Image, c.ImagePullPolicy = image, v1.PullAlways
		return pod(name, c)
	}
	t.run(pulled("banned", "127.0.0.1:9/banned/app:1"), pulled("unreachable", "127.0.0.1:9/other/app:1"), pod("allowed", sh("main", idle)))
	t.waits("banned", "SignatureValidationFailed", "127.0.0.1:9/banned")
	t.waits("unreachable", "RegistryUnavailable", "127.0.0.1:9")
	t.ready("allowed")
}

// waits until the only container waits for one of the reasons, with a message that holds one of the words.
func (t *T) waits(name, reasons string, words ...string) {
	t.wait(name, "waiting: "+reasons, func(p *v1.Pod) bool {
		w := status(p, "main").State.Waiting
		if w == nil || !strings.Contains(reasons, w.Reason) || w.Reason == "" {
			return false
		}
		for _, word := range words {
			if strings.Contains(w.Message, word) {
				return true
			}
		}
		return false
	})
}

func eagerImageGC(config *kubeletconfig.KubeletConfiguration) {
	config.ImageGCHighThresholdPercent, config.ImageGCLowThresholdPercent = ptr(int32(20)), ptr(int32(1))
	config.ImageMinimumGCAge = metav1.Duration{Duration: time.Second}
	config.EvictionHard = map[string]string{"imagefs.available": "80%"}
	config.EvictionPressureTransitionPeriod = metav1.Duration{Duration: 5 * time.Second}
}

// imageGC: the disk is fuller than kubelet wants: it removes the images that nobody uses, and not the one in use.
func imageGC(t *T) {
	t.run(pod("user-of-image", sh("main", idle)))
	t.ready("user-of-image")
	for _, name := range []string{"nginx", "redis", "python3"} {
		if err := t.Import(name); err != nil && !strings.Contains(err.Error(), "no space") && !strings.Contains(err.Error(), "No space") {
			t.Must(err)
		}
	}
	t.until(3*time.Minute, func() bool {
		list, err := t.Images.ListImages(t.Ctx, &cri.ListImagesRequest{})
		t.Must(err)
		return len(list.Images) <= 2
	}, "images are not collected")
	t.expect(running(t.pod("user-of-image"), "main"), "the user of an image was hit")
	in, err := t.Images.ImageStatus(t.Ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image("busybox")}})
	t.Must(err)
	t.expect(in.Image != nil, "the image in use was removed")
}
