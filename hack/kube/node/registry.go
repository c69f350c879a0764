package node

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Registry is Debian's docker-registry on the node's loopback, with what hack/images pushed, for those who know the
// password.
type Registry struct {
	Host, User, Password string
	process              *Process
}

// StartRegistry serves a copy of the test images.
func (n *Node) StartRegistry(ctx context.Context) (*Registry, error) {
	r := &Registry{Host: "127.0.0.1:5000", User: "puller", Password: rand.Text()}
	storage := n.Path("registry")
	if out, err := exec.Command("cp", "-a", ".cache/registry", storage).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("hack/images base makes the images: %w\n%s", err, out)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(r.Password), bcrypt.MinCost)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.Path("htpasswd"), fmt.Appendf(nil, "%s:%s\n", r.User, hash), 0o600); err != nil {
		return nil, err
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: '%s'}\n"+
		"auth: {htpasswd: {realm: test, path: %q}}\n", storage, r.Host, n.Path("htpasswd"))
	if err := os.WriteFile(n.Path("registry.yml"), []byte(config), 0o644); err != nil {
		return nil, err
	}
	r.process = newProcess("docker-registry", n.Path("registry.log"), func() *exec.Cmd {
		return exec.Command("docker-registry", "serve", n.Path("registry.yml"))
	})
	if err := r.process.Start(); err != nil {
		return nil, err
	}
	return r, r.process.waitUntil(ctx, 20*time.Second, func(context.Context) error {
		connection, err := net.Dial("tcp", r.Host)
		if err == nil {
			connection.Close()
		}
		return err
	})
}

// Stop ends it.
func (r *Registry) Stop() error { return r.process.Stop(syscall.SIGTERM) }

// LogIn gives kubelet the credentials of the registry in the file that it looks for in its own directory.
func (n *Node) LogIn(r *Registry) error {
	auth := base64.StdEncoding.EncodeToString([]byte(r.User + ":" + r.Password))
	config := map[string]any{"auths": map[string]any{r.Host: map[string]string{"auth": auth}}}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.Path("kubelet"), "config.json"), text, 0o600)
}
