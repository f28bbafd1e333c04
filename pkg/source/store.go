package source

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/secret"
)

// retryPrefix starts the keys beside the sources that say: try now. No id holds a dot.
const retryPrefix = "retry."

// Announcement is one change, told to the rest of the world once it is stored.
type Announcement struct {
	// Event is the event token of source.v1 ([contract.SourceCreated] and so on); empty when only the audit is told.
	Event  string
	Source contract.SourceEvent
	Audit  contract.AuditEvent
}

// Announcer publishes announcements as source.v1 and audit.v1 events.
type Announcer interface {
	Announce(ctx context.Context, what Announcement) error
}

// Options of a [Store]. The zero value of each is its default.
type Options struct {
	// AllowedPorts is [DefaultPorts] when empty.
	AllowedPorts []int
	// Announcer is told of every change; nil tells nobody. A change that could not be announced stands, and is logged.
	Announcer Announcer
	// Log says what could not be read or announced; nil says nothing.
	Log *slog.Logger
	// Now is time.Now when nil.
	Now func() time.Time
}

// Store keeps sources and workflows. Every write is a compare-and-set on the revision that was read: store.conflict
// when somebody else was faster. It checks [Validate] before every write: the error is an [*InvalidError]. A source or
// workflow that is not there is store.not_found.
//
// Names and accounts are kept unique among the changes made through one Store; two processes that add the same account
// in the same moment are not told apart.
type Store struct {
	sources, workflows Bucket
	keys               *secret.Keyring
	options            Options
	// mu serializes changes, so that what was checked to be unique still is when it is written.
	mu sync.Mutex
}

// NewStore makes a store over the buckets `sources` and `workflows`. keys may be nil where passwords are
// never written.
func NewStore(sources, workflows Bucket, keys *secret.Keyring, options Options) *Store {
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	return &Store{sources: sources, workflows: workflows, keys: keys, options: options}
}

// Get reads one source.
func (st *Store) Get(ctx context.Context, id string) (Source, error) {
	if !contract.ValidToken(id) {
		return Source{}, notFound("source "+id, nil)
	}
	entry, err := st.sources.Get(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return Source{}, notFound("source "+id, err)
	}
	if err != nil {
		return Source{}, err
	}
	return decodeSource(entry)
}

// List reads all sources, by id. Records that cannot be read are left out, and logged.
func (st *Store) List(ctx context.Context) ([]Source, error) {
	entries, err := st.sources.List(ctx, "*")
	if err != nil {
		return nil, err
	}
	sources := make([]Source, 0, len(entries))
	for _, entry := range entries {
		if strings.HasPrefix(entry.Key, retryPrefix) {
			continue
		}
		s, err := decodeSource(entry)
		if err != nil {
			st.options.Log.Error("the record of a source cannot be read", "source", entry.Key, "error", err)
			continue
		}
		sources = append(sources, s)
	}
	return sorted(sources), nil
}

// Create stores a new source with its password. by is who does it.
func (st *Store) Create(ctx context.Context, s Source, password secret.Secret, by string) (Source, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	s.ManagedBy = ""
	s = s.normal()
	if err := st.check(ctx, s, nil, password); err != nil {
		return Source{}, err
	}
	return st.write(ctx, nil, s, password, act{by: by, action: "source-created"})
}

// Update stores changed settings of a source that was read before: id, epoch, times and manager stay as they are, and
// so does the password when none is given. Changing server or username asks for it again.
func (st *Store) Update(ctx context.Context, s Source, password secret.Secret, by string) (Source, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	before, err := st.own(ctx, s.ID, s.Revision)
	if err != nil {
		return Source{}, err
	}
	s.ManagedBy = before.ManagedBy
	s = s.normal()
	if err := st.check(ctx, s, &before, password); err != nil {
		return Source{}, err
	}
	return st.write(ctx, &before, s, password, act{by: by, action: "source-changed"})
}

// SetPassword stores a new password of a source; revision is that of the source as it was read.
func (st *Store) SetPassword(
	ctx context.Context, id string, revision uint64, password secret.Secret, by string,
) (Source, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	before, err := st.own(ctx, id, revision)
	if err != nil {
		return Source{}, err
	}
	v := &violations{}
	if password == "" {
		v.add("password", RuleRequired, "Give the password.")
	}
	v.password(password)
	if err := invalid("the source "+id, v.list); err != nil {
		return Source{}, err
	}
	return st.write(ctx, &before, before, password, act{by: by, action: "source-changed"})
}

// Pause stops a source, whoever manages it. Pausing a paused source changes nothing.
func (st *Store) Pause(ctx context.Context, id, by string) (Source, error) {
	return st.setPaused(ctx, id, true, by, "source-paused")
}

// Resume starts a paused source again, whoever manages it.
func (st *Store) Resume(ctx context.Context, id, by string) (Source, error) {
	return st.setPaused(ctx, id, false, by, "source-resumed")
}

func (st *Store) setPaused(ctx context.Context, id string, paused bool, by, action string) (Source, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	before, err := st.Get(ctx, id)
	if err != nil {
		return Source{}, err
	}
	next := before
	next.Paused = paused
	return st.write(ctx, &before, next, "", act{by: by, action: action})
}

// Retry wakes whoever drains the source, to try at once.
func (st *Store) Retry(ctx context.Context, id, by string) error {
	s, err := st.Get(ctx, id)
	if err != nil {
		return err
	}
	if _, err := st.sources.Put(ctx, retryPrefix+id, []byte(st.now().Format(time.RFC3339Nano))); err != nil {
		return err
	}
	st.announce(ctx, "", s, by, "source-retried", nil)
	return nil
}

// Delete removes a source that was read with this revision. What it published stays; its waiting orders are closed by
// the archiver as left.
func (st *Store) Delete(ctx context.Context, id string, revision uint64, by string) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	s, err := st.own(ctx, id, revision)
	if err != nil {
		return err
	}
	return st.remove(ctx, s, by)
}

func (st *Store) remove(ctx context.Context, s Source, by string) error {
	if err := st.sources.Delete(ctx, s.ID, s.Revision); err != nil {
		return conflict(err, "the source "+s.ID)
	}
	st.announce(ctx, contract.SourceRemoved, s, by, "source-removed", nil)
	if retry, err := st.sources.Get(ctx, retryPrefix+s.ID); err == nil {
		_ = st.sources.Delete(ctx, retry.Key, retry.Revision) // left over, it wakes nobody
	}
	return nil
}

// own reads a source that is about to be changed by a person: it must be as it was read, and not managed by a file.
func (st *Store) own(ctx context.Context, id string, revision uint64) (Source, error) {
	before, err := st.Get(ctx, id)
	if err != nil {
		return Source{}, err
	}
	if before.ManagedBy == ByFile {
		return Source{}, fault.New(fault.PolicyManagedByFile, nil, fault.Params{"what": "the source " + id})
	}
	if before.Revision != revision {
		return Source{}, fault.New(fault.StoreConflict, nil, fault.Params{"what": "the source " + id})
	}
	return before, nil
}

// check validates against everything that is stored.
func (st *Store) check(ctx context.Context, s Source, before *Source, password secret.Secret) error {
	others, err := st.List(ctx)
	if err != nil {
		return err
	}
	workflows, err := st.Workflows(ctx)
	if err != nil {
		return err
	}
	return invalid("the source "+s.ID, Validate(s, Rules{
		AllowedPorts: st.options.AllowedPorts, Workflows: workflows, Others: others, Before: before, Password: password,
	}))
}

// act is who does what. pausedBy is whom a new pause belongs to, by when empty.
type act struct{ by, action, pausedBy string }

// write stores a source that was checked, as it follows from what was there before (nil: nothing), and announces what
// changed. Nothing is written when nothing changed.
func (st *Store) write(
	ctx context.Context, before *Source, s Source, password secret.Secret, act act,
) (Source, error) {
	s, fields, err := st.settle(before, s, password, act)
	if err != nil {
		return Source{}, err
	}
	if before != nil && len(fields) == 0 {
		return *before, nil
	}
	return st.commit(ctx, before, s, fields, act)
}

// commit stores and announces what settle made.
func (st *Store) commit(
	ctx context.Context, before *Source, s Source, fields []string, act act,
) (Source, error) {
	value, err := json.Marshal(s)
	if err != nil {
		return Source{}, err
	}
	event := contract.SourceChanged
	if before == nil {
		event = contract.SourceCreated
		s.Revision, err = st.sources.Create(ctx, s.ID, value)
	} else {
		s.Revision, err = st.sources.Update(ctx, s.ID, value, before.Revision)
	}
	if err != nil {
		return Source{}, conflict(err, "the source "+s.ID)
	}
	st.announce(ctx, event, s, act.by, act.action, fields)
	return s, nil
}

// settle works out what belongs to the store and not to the person: epoch, times, boundary, who paused, the sealed
// password. It returns the names of the fields that changed; for a new source none.
func (st *Store) settle(before *Source, s Source, password secret.Secret, act act) (Source, []string, error) {
	now := st.now()
	if before == nil {
		s.CreatedAt, s.Epoch = now, newEpoch()
	} else {
		s.CreatedAt, s.Epoch, s.Auth, s.ResumedAt = before.CreatedAt, before.Epoch, before.Auth, before.ResumedAt
		if otherAccount(*before, s) {
			s.Epoch = newEpoch()
		}
	}
	switch {
	case before == nil || before.ImportFrom != s.ImportFrom:
		boundary, err := parseImportFrom(s.ImportFrom, now)
		if err != nil {
			return Source{}, nil, err
		}
		s.Boundary = boundary
	default:
		s.Boundary = before.Boundary
	}
	switch {
	case !s.Paused:
		if before != nil && before.Paused {
			s.ResumedAt = now
		}
		s.PausedBy, s.PausedAt = "", time.Time{}
	case before != nil && before.Paused:
		s.PausedBy, s.PausedAt = before.PausedBy, before.PausedAt
	default:
		s.PausedBy, s.PausedAt = cmp.Or(act.pausedBy, act.by), now
	}
	var fields []string
	if before != nil {
		fields = changed(*before, s)
	}
	if password != "" {
		if err := s.SealPassword(st.keys, password); err != nil {
			return Source{}, nil, err
		}
		if before != nil {
			fields = append(fields, fieldPassword)
		}
	}
	return s, fields, nil
}

// RotateKeys seals every password anew with the newest key of the key file; see [secret.Keyring.AddKey]. It returns how
// many it sealed. A password that no key opens stops nothing: those sources are in the error.
func (st *Store) RotateKeys(ctx context.Context, by string) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	sources, err := st.List(ctx)
	if err != nil {
		return 0, err
	}
	var errs []error
	count := 0
	for _, s := range sources {
		sealed, changed, err := st.keys.Rewrap(s.Auth.Sealed, s.ID, fieldPassword)
		if err != nil {
			errs = append(errs, fmt.Errorf("source %s: %w", s.ID, err))
			continue
		}
		if !changed {
			continue
		}
		s.Auth.Sealed = sealed
		value, err := json.Marshal(s)
		if err != nil {
			return count, err
		}
		if _, err := st.sources.Update(ctx, s.ID, value, s.Revision); err != nil {
			errs = append(errs, fmt.Errorf("source %s: %w", s.ID, err))
			continue
		}
		count++
	}
	st.tell(ctx, Announcement{Audit: contract.AuditEvent{Actor: by, Action: "keys-rotated", At: st.now()}})
	return count, errors.Join(errs...)
}

// Change is what [Store.Watch] tells.
type Change struct {
	// ID of the source; empty with Ready.
	ID string
	// Source as it is now; zero when it was removed.
	Source Source
	// Removed: the source was deleted.
	Removed bool
	// Retry: somebody asked to try at once; the settings are the same.
	Retry bool
	// Ready comes once, after everything there was when the watch began.
	Ready bool
}

// Watch calls each with every source there is, then with Ready, then with every change, one at a time and in order,
// until ctx ends (nil) or changes can no longer be followed. Records that cannot be read are logged and passed over.
func (st *Store) Watch(ctx context.Context, each func(Change)) error {
	known := map[string]Source{}
	ready := false
	see := func(entry Entry) {
		if id, ok := strings.CutPrefix(entry.Key, retryPrefix); ok {
			if s, ok := known[id]; ok && ready && !entry.Deleted {
				each(Change{ID: id, Source: s, Retry: true})
			}
			return
		}
		if entry.Deleted {
			delete(known, entry.Key)
			each(Change{ID: entry.Key, Removed: true})
			return
		}
		s, err := decodeSource(entry)
		if err != nil {
			st.options.Log.Error("the record of a source cannot be read", "source", entry.Key, "error", err)
			return
		}
		known[s.ID] = s
		each(Change{ID: s.ID, Source: s})
	}
	follow := func(entry Entry) error {
		see(entry)
		return nil
	}
	return st.sources.Watch(ctx, ">", follow, func() {
		ready = true
		each(Change{Ready: true})
	})
}

// Workflows reads all workflows, by id. Records that cannot be read are left out, and logged.
func (st *Store) Workflows(ctx context.Context) ([]Workflow, error) {
	entries, err := st.workflows.List(ctx, "*")
	if err != nil {
		return nil, err
	}
	workflows := make([]Workflow, 0, len(entries))
	for _, entry := range entries {
		var w Workflow
		if err := json.Unmarshal(entry.Value, &w); err != nil || w.ID != entry.Key {
			st.options.Log.Error("the record of a workflow cannot be read", "workflow", entry.Key, "error", err)
			continue
		}
		w.Revision = entry.Revision
		workflows = append(workflows, w)
	}
	slices.SortFunc(workflows, func(a, b Workflow) int { return strings.Compare(a.ID, b.ID) })
	return workflows, nil
}

// CreateWorkflow stores a new workflow.
func (st *Store) CreateWorkflow(ctx context.Context, w Workflow, by string) (Workflow, error) {
	w.Revision = 0
	return st.saveWorkflow(ctx, w, by)
}

// UpdateWorkflow stores a workflow that was read before. One that sources use as their default stays published.
func (st *Store) UpdateWorkflow(ctx context.Context, w Workflow, by string) (Workflow, error) {
	if w.Revision == 0 {
		return Workflow{}, notFound("workflow "+w.ID, nil)
	}
	return st.saveWorkflow(ctx, w, by)
}

func (st *Store) saveWorkflow(ctx context.Context, w Workflow, by string) (Workflow, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	w.Name = strings.TrimSpace(w.Name)
	others, err := st.Workflows(ctx)
	if err != nil {
		return Workflow{}, err
	}
	sources, err := st.List(ctx)
	if err != nil {
		return Workflow{}, err
	}
	if err := invalid("the workflow "+w.ID, ValidateWorkflow(w, others, sources)); err != nil {
		return Workflow{}, err
	}
	return st.putWorkflow(ctx, w, by)
}

func (st *Store) putWorkflow(ctx context.Context, w Workflow, by string) (Workflow, error) {
	value, err := json.Marshal(w)
	if err != nil {
		return Workflow{}, err
	}
	action := "workflow-changed"
	if w.Revision == 0 {
		action = "workflow-created"
		w.Revision, err = st.workflows.Create(ctx, w.ID, value)
	} else {
		w.Revision, err = st.workflows.Update(ctx, w.ID, value, w.Revision)
	}
	if err != nil {
		return Workflow{}, conflict(err, "the workflow "+w.ID)
	}
	st.tell(ctx, Announcement{Audit: contract.AuditEvent{Actor: by, Action: action, Object: w.ID, At: st.now()}})
	return w, nil
}

// DeleteWorkflow removes a workflow that was read with this revision, unless sources use it as their default.
func (st *Store) DeleteWorkflow(ctx context.Context, id string, revision uint64, by string) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	sources, err := st.List(ctx)
	if err != nil {
		return err
	}
	v := &violations{}
	if users := usersOf(id, sources); len(users) > 0 {
		v.add("id", RuleInUse, "New requests of these sources go to this workflow: %s. "+
			"Give them another default workflow first.", strings.Join(users, ", "))
	}
	if err := invalid("the workflow "+id, v.list); err != nil {
		return err
	}
	if err := st.workflows.Delete(ctx, id, revision); err != nil {
		return conflict(err, "the workflow "+id)
	}
	st.tell(ctx, Announcement{Audit: contract.AuditEvent{
		Actor: by, Action: "workflow-removed", Object: id, At: st.now(),
	}})
	return nil
}

// EnsureWorkflow makes the workflow [General] when there is no workflow at all: a first start has one.
func (st *Store) EnsureWorkflow(ctx context.Context, by string) error {
	workflows, err := st.Workflows(ctx)
	if err != nil || len(workflows) > 0 {
		return err
	}
	_, err = st.CreateWorkflow(ctx, General(), by)
	if fault.CodeOf(err) == fault.StoreConflict { // another process was faster
		return nil
	}
	return err
}

func (st *Store) announce(ctx context.Context, event string, s Source, by, action string, fields []string) {
	now := st.now()
	st.tell(ctx, Announcement{
		Event: event,
		Source: contract.SourceEvent{
			Source: s.Ref(), Revision: s.Revision, Epoch: s.Epoch, Changed: fields, ManagedBy: s.ManagedBy, At: now,
		},
		Audit: contract.AuditEvent{Actor: by, Action: action, Object: s.ID, Fields: fields, At: now},
	})
}

func (st *Store) tell(ctx context.Context, what Announcement) {
	if st.options.Announcer == nil {
		return
	}
	// The change is stored: it is told even when whoever made it does not wait any longer.
	if err := st.options.Announcer.Announce(context.WithoutCancel(ctx), what); err != nil {
		st.options.Log.Error("a change is stored, but could not be announced",
			"action", what.Audit.Action, "object", what.Audit.Object, "error", err)
	}
}

func (st *Store) now() time.Time { return st.options.Now().UTC() }

func decodeSource(entry Entry) (Source, error) {
	var s Source
	if err := json.Unmarshal(entry.Value, &s); err != nil {
		return Source{}, fmt.Errorf("the record of source %s: %w", entry.Key, err)
	}
	if s.ID != entry.Key {
		return Source{}, fmt.Errorf("the record of source %s is one of source %q", entry.Key, s.ID)
	}
	s.Revision = entry.Revision
	return s, nil
}

func notFound(what string, cause error) error {
	return fault.New(fault.StoreNotFound, cause, fault.Params{"what": what})
}

// conflict names what was changed by somebody else; other errors pass.
func conflict(err error, what string) error {
	if fault.CodeOf(err) == fault.StoreConflict {
		return fault.New(fault.StoreConflict, err, fault.Params{"what": what})
	}
	if errors.Is(err, ErrNotFound) {
		return notFound(strings.TrimPrefix(what, "the "), err)
	}
	return err
}
