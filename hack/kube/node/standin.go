package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	defaults "k8s.io/kubernetes/pkg/apis/core/v1"
)

// StandIn answers kubelet as an API server would that knows one node: it keeps what it is given by path, lists and
// watches, and checks nothing. Some of kubelet is asleep without one: evictions, recursive read-only mounts, in-place
// resize; static pods it evicts never.
type StandIn struct {
	mutex    sync.Mutex
	version  int
	objects  map[string]map[string]any
	watchers map[*watcher]bool
	server   *http.Server
	url      string
}

type watcher struct {
	collection string
	events     chan []byte
}

func startStandIn() (*StandIn, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &StandIn{objects: map[string]map[string]any{}, watchers: map[*watcher]bool{}, url: "http://" + listener.Addr().String()}
	s.put("/api/v1/nodes/"+Name, map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": Name, "uid": "0-node", "labels": map[string]any{}},
		"status": map[string]any{"allocatable": map[string]any{"cpu": "64", "memory": "64Gi", "pods": "300"}, "addresses": []any{map[string]any{"type": "InternalIP", "address": Address}}},
	}, "ADDED")
	s.server = &http.Server{Handler: s}
	go func() { _ = s.server.Serve(listener) }()
	return s, nil
}

// kubeconfig that leads kubelet here.
func (s *StandIn) kubeconfig(file string) error {
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\nusers: [{name: u, user: {}}]\n"+
		"contexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n", s.url)
	return os.WriteFile(file, []byte(text), 0o600)
}

func podPath(name string) string { return "/api/v1/namespaces/default/pods/" + name }

// Put gives the node a pod, or changes the specification of the one of that name;
// with a real one's defaults.
func (s *StandIn) Put(pod *v1.Pod) error {
	pod.Spec.NodeName = Name
	defaults.SetObjectDefaults_Pod(pod)
	text, err := json.Marshal(pod)
	if err != nil {
		return err
	}
	object := map[string]any{}
	if err := json.Unmarshal(text, &object); err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	kind := "ADDED"
	if old := s.objects[podPath(pod.Name)]; old != nil {
		object["status"], object["metadata"], kind = old["status"], old["metadata"], "MODIFIED"
	} else {
		delete(object["metadata"].(map[string]any), "creationTimestamp")
	}
	s.put(podPath(pod.Name), object, kind)
	return nil
}

// Pod as kubelet reported it; nil: there is none.
func (s *StandIn) Pod(name string) (*v1.Pod, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	object := s.objects[podPath(name)]
	if object == nil {
		return nil, nil
	}
	text, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	pod := &v1.Pod{}
	return pod, json.Unmarshal(text, pod)
}

// Delete asks kubelet to end a pod; the object goes when kubelet says that it has.
func (s *StandIn) Delete(name string, grace int64) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if object := s.objects[podPath(name)]; object != nil {
		merge(object, map[string]any{"metadata": map[string]any{"deletionTimestamp": metav1.Now().UTC().Format("2006-01-02T15:04:05Z"), "deletionGracePeriodSeconds": grace}})
		s.put(podPath(name), object, "MODIFIED")
	}
}

// put keeps and tells; the mutex is held.
func (s *StandIn) put(name string, object map[string]any, kind string) {
	s.version++
	metadata, _ := object["metadata"].(map[string]any)
	if metadata == nil {
		metadata = map[string]any{}
		object["metadata"] = metadata
	}
	metadata["resourceVersion"] = strconv.Itoa(s.version)
	if metadata["uid"] == nil {
		metadata["uid"] = fmt.Sprintf("uid-%d", s.version)
	}
	s.objects[name] = object
	if kind == "DELETED" {
		delete(s.objects, name)
	}
	event, _ := json.Marshal(map[string]any{"type": kind, "object": object})
	for w := range s.watchers {
		if belongs(name, w.collection) {
			w.events <- event
		}
	}
}

// belongs: a name lies in a collection, or in the one of all namespaces.
func belongs(name, collection string) bool {
	dir := path.Dir(name)
	if before, after, found := strings.Cut(dir, "/namespaces/"); found && collection != dir {
		_, resource, _ := strings.Cut(after, "/")
		dir = before + "/" + resource
	}
	return dir == collection
}

// merge is RFC 7386, but that lists of things that have a type are merged by it: as much of strategic merge patches as
// kubelet uses for the status of nodes and pods.
func merge(into, patch map[string]any) {
	for key, value := range patch {
		if strings.HasPrefix(key, "$") {
			continue
		}
		inner, isMap := value.(map[string]any)
		old, wasMap := into[key].(map[string]any)
		items, isList := value.([]any)
		switch {
		case value == nil:
			delete(into, key)
		case isMap && wasMap:
			merge(old, inner)
		case isList && (key == "conditions" || key == "addresses"):
			before, _ := into[key].([]any)
			into[key] = mergeByType(before, items)
		default:
			into[key] = value
		}
	}
}

func mergeByType(before, patch []any) []any {
	merged := slices.Clone(before)
	for _, item := range patch {
		change, _ := item.(map[string]any)
		at := slices.IndexFunc(merged, func(have any) bool {
			old, isMap := have.(map[string]any)
			return isMap && old["type"] == change["type"]
		})
		switch {
		case change["$patch"] == "delete" && at >= 0:
			merged = slices.Delete(merged, at, at+1)
		case at >= 0:
			merge(merged[at].(map[string]any), change)
		case change["$patch"] != "delete":
			merged = append(merged, item)
		}
	}
	return merged
}

func (s *StandIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && r.URL.Query().Has("watch") {
		s.watch(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	given := map[string]any{}
	_ = json.Unmarshal(body, &given)
	s.mutex.Lock()
	defer s.mutex.Unlock()
	name := strings.TrimSuffix(r.URL.Path, "/status")
	object, known := s.objects[name]
	switch r.Method {
	case http.MethodPost:
		metadata, _ := given["metadata"].(map[string]any)
		title, _ := metadata["name"].(string)
		s.put(name+"/"+title, given, "ADDED")
		answer(w, http.StatusCreated, given)
	case http.MethodGet:
		if known {
			answer(w, http.StatusOK, object)
		} else if s.isCollection(name) {
			answer(w, http.StatusOK, s.list(name))
		} else {
			refuse(w, http.StatusNotFound, "NotFound")
		}
	case http.MethodPut, http.MethodPatch:
		if !known {
			refuse(w, http.StatusNotFound, "NotFound")
			return
		}
		merge(object, given)
		s.put(name, object, "MODIFIED")
		answer(w, http.StatusOK, object)
	case http.MethodDelete:
		if !known {
			refuse(w, http.StatusNotFound, "NotFound")
			return
		}
		s.put(name, object, "DELETED")
		answer(w, http.StatusOK, object)
	}
}

// isCollection: an object's path has an even number of parts behind the version, for those of a namespace, too.
func (s *StandIn) isCollection(name string) bool {
	parts := strings.Split(strings.Trim(name, "/"), "/")
	skip := 3 // apis/GROUP/VERSION
	if parts[0] == "api" {
		skip = 2
	}
	return (len(parts)-skip)%2 == 1
}

func (s *StandIn) list(collection string) map[string]any {
	items := []any{}
	for name, object := range s.objects {
		if belongs(name, collection) {
			items = append(items, object)
		}
	}
	list := map[string]any{"metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version)}, "items": items}
	if path.Base(collection) == "pods" { // the only list that kubelet asks for without saying what it expects
		list["apiVersion"], list["kind"] = "v1", "PodList"
	}
	return list
}

func (s *StandIn) watch(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has("sendInitialEvents") { // clients then list as they always did
		refuse(w, http.StatusUnprocessableEntity, "Invalid")
		return
	}
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	self := &watcher{collection: r.URL.Path, events: make(chan []byte, 4096)}
	s.mutex.Lock()
	for name, object := range s.objects { // what changed between list and watch
		metadata := object["metadata"].(map[string]any)
		if changed, _ := strconv.Atoi(metadata["resourceVersion"].(string)); changed > since && belongs(name, self.collection) {
			event, _ := json.Marshal(map[string]any{"type": "MODIFIED", "object": object})
			self.events <- event
		}
	}
	s.watchers[self] = true
	s.mutex.Unlock()
	defer func() {
		s.mutex.Lock()
		delete(s.watchers, self)
		s.mutex.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case event := <-self.events:
			if _, err := w.Write(append(event, '\n')); err != nil || flush.Flush() != nil {
				return
			}
		}
	}
}

func answer(w http.ResponseWriter, code int, object map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object)
}

func refuse(w http.ResponseWriter, code int, reason string) {
	answer(w, code, map[string]any{"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason})
}
