package node

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"
)

const (
	// Name of the node; static pods are called after it.
	Name = "node"
	port = 10250
)

// kubeletConfig is what makes a kubelet run anywhere: nothing of the machine is touched, everything lies below one
// directory and one control group, times are short where waiting would only be waiting.
func (n *Node) kubeletConfig() *kubeletconfig.KubeletConfiguration {
	seconds := func(s int) metav1.Duration { return metav1.Duration{Duration: time.Duration(s) * time.Second} }
	config := &kubeletconfig.KubeletConfiguration{
		TypeMeta:                      metav1.TypeMeta{APIVersion: "kubelet.config.k8s.io/v1beta1", Kind: "KubeletConfiguration"},
		StaticPodPath:                 n.Path("manifests"),
		PodLogsDir:                    n.Path("pod-logs"),
		FileCheckFrequency:            seconds(2),
		SyncFrequency:                 seconds(10),
		Address:                       "127.0.0.1",
		Port:                          port,
		HealthzPort:                   ptr(int32(0)),
		Authentication:                kubeletconfig.KubeletAuthentication{Anonymous: kubeletconfig.KubeletAnonymousAuthentication{Enabled: ptr(true)}, Webhook: kubeletconfig.KubeletWebhookAuthentication{Enabled: ptr(false)}},
		Authorization:                 kubeletconfig.KubeletAuthorization{Mode: kubeletconfig.KubeletAuthorizationModeAlwaysAllow},
		CgroupRoot:                    n.CgroupRoot,
		CgroupDriver:                  Driver(),
		FailCgroupV1:                  ptr(false),
		FailSwapOn:                    ptr(false),
		MakeIPTablesUtilChains:        ptr(false),
		ProtectKernelDefaults:         false,
		OOMScoreAdj:                   ptr(int32(0)),
		ResolverConfig:                ptr(""),
		EnforceNodeAllocatable:        []string{"pods"},
		MaxPods:                       300,
		SerializeImagePulls:           ptr(false),
		VolumePluginDir:               n.Path("volume-plugins"),
		LocalStorageCapacityIsolation: ptr(true),
		ContainerRuntimeEndpoint:      "unix://" + n.Socket(),
		RegisterNode:                  ptr(false),
		ContentType:                   "application/json",
		AllowedUnsafeSysctls:          []string{"net.*"},
		EvictionHard:                  map[string]string{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
		ContainerLogMonitorInterval:   &metav1.Duration{Duration: 3 * time.Second},
	}
	if n.options.Kubelet != nil {
		n.options.Kubelet(config)
	}
	return config
}

func (n *Node) newKubelet() (*Process, error) {
	config, err := yaml.Marshal(n.kubeletConfig())
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.Path("kubelet.yaml"), config, 0o644); err != nil {
		return nil, err
	}
	script, err := shadowTunables(n.Path("tunables"))
	if err != nil {
		return nil, err
	}
	kubelet, err := filepath.Abs(filepath.Join(binDir, "kubelet"))
	if err != nil {
		return nil, err
	}
	script += "\nexec " + kubelet + " --config=" + n.Path("kubelet.yaml") + " --root-dir=" + n.Path("kubelet") +
		" --cert-dir=" + n.Path("kubelet/pki") + " --hostname-override=" + Name + " --node-ip=" + Address + " -v=2"
	if n.StandIn != nil {
		if err := n.StandIn.kubeconfig(n.Path("kubeconfig")); err != nil {
			return nil, err
		}
		script += " --kubeconfig=" + n.Path("kubeconfig")
	}
	return newProcess("kubelet", n.Path("kubelet.log"), func() *exec.Cmd {
		command := exec.Command("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script)
		if n.Logind != nil {
			command.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+n.Logind.Address)
		}
		return command
	}), nil
}

// StartKubelet starts it (again) and returns when it is healthy and has its pods.
func (n *Node) StartKubelet(ctx context.Context) error {
	if err := n.Kubelet.Start(); err != nil {
		return err
	}
	return n.Kubelet.waitUntil(ctx, 90*time.Second, func(ctx context.Context) error {
		if _, err := n.API.Get(ctx, "/healthz"); err != nil {
			return err
		}
		_, err := n.API.Pods(ctx)
		return err
	})
}

func ptr[T any](v T) *T { return &v }
