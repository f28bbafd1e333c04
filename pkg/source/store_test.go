package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/secret"
)

const password secret.Secret = "correct horse battery staple"

// told remembers what was announced.
type told struct {
	mu   sync.Mutex
	list []Announcement
	fail error
}

func (a *told) Announce(_ context.Context, what Announcement) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, what)
	return a.fail
}

// last is what was announced last: event, action, actor and the fields that changed.
func (a *told) last() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.list) == 0 {
		return "nothing"
	}
	what := a.list[len(a.list)-1]
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", what.Event, what.Audit.Action, what.Audit.Object,
		what.Audit.Actor, strings.Join(what.Source.Changed, ",")))
}

// house is a store over buckets in memory.
type house struct {
	*Store
	t                  *testing.T
	sources, workflows *memory
	told               *told
	log                *bytes.Buffer
	clock              time.Time
}

func newHouse(t *testing.T) *house {
	t.Helper()
	keys, err := secret.LoadOrCreate(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	h := &house{
		t: t, sources: newMemory(), workflows: newMemory(), told: &told{}, log: &bytes.Buffer{},
		clock: time.Date(2026, 11, 23, 12, 0, 0, 500, time.FixedZone("EET", 7200)),
	}
	h.Store = NewStore(h.sources, h.workflows, keys, Options{
		Announcer: h.told, Log: slog.New(slog.NewTextHandler(h.log, nil)), Now: func() time.Time { return h.clock },
	})
	_, err = h.CreateWorkflow(t.Context(), Workflow{ID: "sales", Name: "Sales", Published: true}, "test")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *house) create(s Source) Source {
	h.t.Helper()
	made, err := h.Create(h.t.Context(), s, password, "liisa")
	if err != nil {
		h.t.Fatal(err)
	}
	return made
}

func (h *house) update(s Source, password secret.Secret) Source {
	h.t.Helper()
	changed, err := h.Update(h.t.Context(), s, password, "matti")
	if err != nil {
		h.t.Fatal(err)
	}
	return changed
}

func (h *house) password(id string) secret.Secret {
	h.t.Helper()
	s, err := h.Get(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	settings, err := s.Settings(h.keys)
	if err != nil {
		h.t.Fatal(err)
	}
	return secret.Secret(settings.Password)
}

func wantCode(t *testing.T, err error, code fault.Code) {
	t.Helper()
	if got := fault.CodeOf(err); got != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

func TestASourceIsStoredAndReadBackWhole(t *testing.T) {
	h := newHouse(t)
	s := good()
	s.Server, s.Name, s.ImportFrom = " MAIL.example.org. ", " Sales inbox ", ImportNow
	made := h.create(s)
	read, err := h.Get(t.Context(), "sales")
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%#v", read) != fmt.Sprintf("%#v", made) || read.Revision == 0 {
		t.Errorf("read %#v\nmade %#v", read, made)
	}
	if read.Server != "mail.example.org" || read.Name != "Sales inbox" {
		t.Errorf("server %q, name %q", read.Server, read.Name)
	}
	if want := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC); !read.Boundary.Equal(want) || !read.ImportFromNow() {
		t.Errorf("boundary %v, want %v", read.Boundary, want)
	}
	if !read.CreatedAt.Equal(h.clock) || len(read.Epoch) != 16 || !contract.ValidToken(read.Epoch) {
		t.Errorf("created %v, epoch %q", read.CreatedAt, read.Epoch)
	}
	if got := h.password("sales"); got != password {
		t.Errorf("password %q", got.Reveal())
	}
	if got := h.told.last(); got != "created source-created sales liisa" {
		t.Error(got)
	}
	event := h.told.list[len(h.told.list)-1].Source
	if event.Revision != read.Revision || event.Epoch != read.Epoch || event.Source != read.Ref() {
		t.Errorf("%+v", event)
	}
}

func TestTwoPeopleWhoChangeASourceDoNotOverwriteEachOther(t *testing.T) {
	h := newHouse(t)
	first := h.create(good())
	second := first
	first.Name, second.Name = "First", "Second"
	h.update(first, "")
	_, err := h.Update(t.Context(), second, "", "liisa")
	wantCode(t, err, fault.StoreConflict)
	if want := "store.conflict: somebody else changed the source sales at the same time"; err.Error() != want {
		t.Errorf("got %q", err)
	}
	wantCode(t, h.Delete(t.Context(), "sales", second.Revision, "liisa"), fault.StoreConflict)
	_, err = h.SetPassword(t.Context(), "sales", second.Revision, "new", "liisa")
	wantCode(t, err, fault.StoreConflict)
	if s, err := h.Get(t.Context(), "sales"); err != nil || s.Name != "First" {
		t.Errorf("%v, name %q", err, s.Name)
	}
}

func TestOneAccountIsNeverGivenToTwoSources(t *testing.T) {
	h := newHouse(t)
	errs := make([]error, 8)
	var group sync.WaitGroup
	for i := range errs {
		group.Go(func() {
			s := good()
			s.ID, s.Name = fmt.Sprintf("s%d", i), fmt.Sprintf("Source %d", i)
			_, errs[i] = h.Create(t.Context(), s, password, "liisa")
		})
	}
	group.Wait()
	refused := 0
	for _, err := range errs {
		if fault.CodeOf(err) == fault.PolicyNotValid {
			refused++
		}
	}
	if list, err := h.List(t.Context()); err != nil || len(list) != 1 || refused != len(errs)-1 {
		t.Errorf("%v, %d sources, %d refused", err, len(list), refused)
	}
}

func TestAChangeNamesItsFieldsAndNoChangeWritesNothing(t *testing.T) {
	h := newHouse(t)
	s := h.create(good())
	s.Name, s.MaxSize, s.RepliesOnly = "New", 25*MB, true
	s = h.update(s, "")
	if got := h.told.last(); got != "changed source-changed sales matti name,replies_only,max_size" {
		t.Error(got)
	}
	writes := h.sources.writes()
	again := h.update(s, "")
	if again.Revision != s.Revision || h.sources.writes() != writes {
		t.Error("written although nothing changed")
	}
	s, err := h.SetPassword(t.Context(), "sales", s.Revision, "new password", "matti")
	if err != nil || h.told.last() != "changed source-changed sales matti password" {
		t.Errorf("%v, %s", err, h.told.last())
	}
	if got := h.password("sales"); got != "new password" {
		t.Errorf("password %q", got.Reveal())
	}
	_, err = h.SetPassword(t.Context(), "sales", s.Revision, "", "matti")
	wantCode(t, err, fault.PolicyNotValid)
}

func TestTheEpochChangesWithTheAccountAndWithNothingElse(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Source)
		other  bool
	}{
		"name":      {func(s *Source) { s.Name = "New" }, false},
		"port":      {func(s *Source) { s.Port = 143 }, false},
		"address":   {func(s *Source) { s.Address = "info@example.org" }, false},
		"server":    {func(s *Source) { s.Server = "imap.example.org" }, true},
		"user name": {func(s *Source) { s.Username = "info" }, true},
		"type":      {func(s *Source) { s.Type, s.Port = mailbox.POP3, 995 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			before := h.create(good())
			after := before
			test.change(&after)
			after.Epoch = "forged"
			after = h.update(after, password)
			if other := after.Epoch != before.Epoch; other != test.other || after.Epoch == "forged" {
				t.Errorf("epoch %q before, %q after", before.Epoch, after.Epoch)
			}
		})
	}
}

func TestChangingTheServerNeedsThePasswordAgain(t *testing.T) {
	h := newHouse(t)
	s := h.create(good())
	s.Server = "evil.example"
	_, err := h.Update(t.Context(), s, "", "mallory")
	list, ok := errors.AsType[*InvalidError](err)
	if !ok || len(list.Violations) != 1 || list.Violations[0].Rule != RuleTypeAgain {
		t.Fatalf("%v", err)
	}
	h.update(s, "typed again")
	if got := h.password("sales"); got != "typed again" {
		t.Errorf("password %q", got.Reveal())
	}
}

func TestASealedPasswordPutIntoAnotherSourceOpensNowhere(t *testing.T) {
	h := newHouse(t)
	h.create(good())
	other := good()
	other.ID, other.Name, other.Username = "info", "Info", "info"
	h.create(other)
	a, err := h.Get(t.Context(), "sales")
	if err != nil {
		t.Fatal(err)
	}
	b, err := h.Get(t.Context(), "info")
	if err != nil {
		t.Fatal(err)
	}
	a.Auth.Sealed, b.Auth.Sealed = b.Auth.Sealed, a.Auth.Sealed
	for _, s := range []Source{a, b} {
		_, err := s.Settings(h.keys)
		wantCode(t, err, fault.AuthKey)
	}
}

func TestTheImportBoundaryStaysUntilItIsSetAnew(t *testing.T) {
	h := newHouse(t)
	s := good()
	s.ImportFrom = ImportNow
	s = h.create(s)
	first := s.Boundary
	h.clock = h.clock.Add(time.Hour)
	s.Boundary = time.Time{} // not the caller's to change
	s.Server = "imap.example.org"
	s = h.update(s, password)
	if !s.Boundary.Equal(first) {
		t.Errorf("boundary %v, want %v", s.Boundary, first)
	}
	s.ImportFrom = "2026-11-01"
	s = h.update(s, "")
	if want := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC); !s.Boundary.Equal(want) {
		t.Errorf("boundary %v, want %v", s.Boundary, want)
	}
	s.ImportFrom = ImportAll
	if s = h.update(s, ""); !s.Boundary.IsZero() {
		t.Errorf("boundary %v", s.Boundary)
	}
}

func TestPausingSaysByWhomAndSinceWhen(t *testing.T) {
	h := newHouse(t)
	h.create(good())
	s, err := h.Pause(t.Context(), "sales", "liisa")
	if err != nil || !s.Paused || s.PausedBy != "liisa" || !s.PausedAt.Equal(h.clock) {
		t.Fatalf("%v, %+v", err, s)
	}
	if got := h.told.last(); got != "changed source-paused sales liisa paused" {
		t.Error(got)
	}
	if again, err := h.Pause(t.Context(), "sales", "matti"); err != nil || again.PausedBy != "liisa" {
		t.Errorf("%v, paused by %q", err, again.PausedBy)
	}
	s.Name = "New"
	if s = h.update(s, ""); s.PausedBy != "liisa" {
		t.Errorf("paused by %q", s.PausedBy)
	}
	h.clock = h.clock.Add(time.Minute)
	s, err = h.Resume(t.Context(), "sales", "matti")
	if err != nil || s.Paused || s.PausedBy != "" || !s.PausedAt.IsZero() || !s.ResumedAt.Equal(h.clock) {
		t.Fatalf("%v, %+v", err, s)
	}
	if got := h.told.last(); got != "changed source-resumed sales matti paused" {
		t.Error(got)
	}
}

func TestWhatIsNotThereIsSaidSo(t *testing.T) {
	h := newHouse(t)
	_, err := h.Get(t.Context(), "nobody")
	wantCode(t, err, fault.StoreNotFound)
	_, err = h.Get(t.Context(), "../x y")
	wantCode(t, err, fault.StoreNotFound)
	_, err = h.Pause(t.Context(), "nobody", "liisa")
	wantCode(t, err, fault.StoreNotFound)
	wantCode(t, h.Retry(t.Context(), "nobody", "liisa"), fault.StoreNotFound)
	wantCode(t, h.Delete(t.Context(), "nobody", 1, "liisa"), fault.StoreNotFound)
	_, err = h.UpdateWorkflow(t.Context(), Workflow{ID: "nobody", Name: "x"}, "liisa")
	wantCode(t, err, fault.StoreNotFound)
}

func TestADeletedSourceLeavesNothingBehind(t *testing.T) {
	h := newHouse(t)
	s := h.create(good())
	if err := h.Retry(t.Context(), "sales", "liisa"); err != nil {
		t.Fatal(err)
	}
	if err := h.Delete(t.Context(), "sales", s.Revision, "liisa"); err != nil {
		t.Fatal(err)
	}
	if got := h.told.last(); got != "removed source-removed sales liisa" {
		t.Error(got)
	}
	if left, err := h.sources.List(t.Context(), ">"); err != nil || len(left) != 0 {
		t.Errorf("%v, left: %v", err, left)
	}
	h.create(good()) // the id is free again
}

func TestARecordThatCannotBeReadHidesNoOther(t *testing.T) {
	h := newHouse(t)
	h.create(good())
	for key, value := range map[string]string{"broken": "{", "swapped": `{"id":"sales"}`} {
		if _, err := h.sources.Put(t.Context(), key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	list, err := h.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != "sales" {
		t.Fatalf("%v, %v", err, list)
	}
	if log := h.log.String(); !strings.Contains(log, "source=broken") || !strings.Contains(log, "source=swapped") {
		t.Error(log)
	}
	if _, err := h.Get(t.Context(), "broken"); err == nil {
		t.Error("a broken record was read")
	}
}

func TestAChangeStandsWhenItCannotBeAnnounced(t *testing.T) {
	h := newHouse(t)
	h.told.fail = fault.New(fault.StoreUnavailable, nil, nil)
	h.create(good())
	if _, err := h.Get(t.Context(), "sales"); err != nil {
		t.Error(err)
	}
	if !strings.Contains(h.log.String(), "could not be announced") {
		t.Error(h.log.String())
	}
}

func TestAStoreThatDoesNotAnswerIsNoConflict(t *testing.T) {
	h := newHouse(t)
	h.sources.fail = fault.New(fault.StoreUnavailable, nil, nil)
	_, err := h.Create(t.Context(), good(), password, "liisa")
	wantCode(t, err, fault.StoreUnavailable)
	if got := h.told.last(); got != "workflow-created sales test" {
		t.Errorf("announced: %s", got)
	}
}

func TestWatchersSeeWhatIsThereAndEveryChangeInOrder(t *testing.T) {
	h := newHouse(t)
	first := h.create(good())
	ctx, stop := context.WithCancel(t.Context())
	changes, ended := make(chan Change, 16), make(chan error, 1)
	go func() { ended <- h.Watch(ctx, func(change Change) { changes <- change }) }()
	expect := func(want string) Change {
		t.Helper()
		change := <-changes
		got := fmt.Sprintf("%s %s removed=%t retry=%t ready=%t",
			change.ID, change.Source.Name, change.Removed, change.Retry, change.Ready)
		if got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
		return change
	}
	expect("sales Sales inbox removed=false retry=false ready=false")
	expect("  removed=false retry=false ready=true")
	first.Name = "New"
	first = h.update(first, "")
	if change := expect("sales New removed=false retry=false ready=false"); change.Source.Revision != first.Revision {
		t.Errorf("revision %d, want %d", change.Source.Revision, first.Revision)
	}
	if err := h.Retry(t.Context(), "sales", "liisa"); err != nil {
		t.Fatal(err)
	}
	if change := expect("sales New removed=false retry=true ready=false"); change.Source.Revision != first.Revision {
		t.Errorf("a retry changed the revision")
	}
	if got := h.told.last(); got != "source-retried sales liisa" {
		t.Error(got)
	}
	if err := h.Delete(t.Context(), "sales", first.Revision, "liisa"); err != nil {
		t.Fatal(err)
	}
	expect("sales  removed=true retry=false ready=false")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAFirstStartMakesOneWorkflow(t *testing.T) {
	h := newHouse(t)
	h.workflows.entries = map[string]Entry{}
	for range 2 {
		if err := h.EnsureWorkflow(t.Context(), "posthorn"); err != nil {
			t.Fatal(err)
		}
	}
	list, err := h.Workflows(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != "general" || list[0].Name != "General" || !list[0].Published {
		t.Errorf("%v, %+v", err, list)
	}
}

func TestAWorkflowInUseStaysPublished(t *testing.T) {
	h := newHouse(t)
	s := h.create(good())
	list, err := h.Workflows(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", err, list)
	}
	w := list[0]
	w.Published = false
	_, err = h.UpdateWorkflow(t.Context(), w, "liisa")
	wantCode(t, err, fault.PolicyNotValid)
	wantCode(t, h.DeleteWorkflow(t.Context(), w.ID, w.Revision, "liisa"), fault.PolicyNotValid)
	if err := h.Delete(t.Context(), "sales", s.Revision, "liisa"); err != nil {
		t.Fatal(err)
	}
	w, err = h.UpdateWorkflow(t.Context(), w, "liisa")
	if err != nil || w.Published {
		t.Fatal(err)
	}
	wantCode(t, h.DeleteWorkflow(t.Context(), w.ID, w.Revision-1, "liisa"), fault.StoreConflict)
	if err := h.DeleteWorkflow(t.Context(), w.ID, w.Revision, "liisa"); err != nil {
		t.Error(err)
	}
	_, err = h.CreateWorkflow(t.Context(), Workflow{ID: "x", Name: "X"}, "liisa")
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.CreateWorkflow(t.Context(), Workflow{ID: "x", Name: "X"}, "liisa")
	wantCode(t, err, fault.StoreConflict)
}

func TestRotatedKeysSealEveryPasswordAnew(t *testing.T) {
	h := newHouse(t)
	before := h.create(good())
	other := good()
	other.ID, other.Name, other.Username = "info", "Info", "info"
	h.create(other)
	lost := good()
	lost.ID, lost.Name, lost.Username = "lost", "Lost", "lost"
	lost.Auth.Sealed = secret.Sealed{KeyID: "gone", Box: []byte("x")}
	value, err := json.Marshal(lost)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.sources.Put(t.Context(), "lost", value); err != nil {
		t.Fatal(err)
	}
	added, err := h.keys.AddKey()
	if err != nil {
		t.Fatal(err)
	}
	count, err := h.RotateKeys(t.Context(), "liisa")
	if count != 2 || fault.CodeOf(err) != fault.AuthKey || !strings.Contains(err.Error(), "source lost") {
		t.Fatalf("%d sealed, %v", count, err)
	}
	for _, id := range []string{"sales", "info"} {
		s, err := h.Get(t.Context(), id)
		if err != nil || s.Auth.Sealed.KeyID != added || h.password(id) != password {
			t.Errorf("%s: %v, key %s, want %s", id, err, s.Auth.Sealed.KeyID, added)
		}
	}
	if s, err := h.Get(t.Context(), "sales"); err != nil || s.Epoch != before.Epoch {
		t.Errorf("%v: the epoch changed", err)
	}
	if count, _ := h.RotateKeys(t.Context(), "liisa"); count != 0 { // the lost one is still lost
		t.Errorf("%d sealed again", count)
	}
	if got := h.told.last(); got != "keys-rotated  liisa" {
		t.Error(got)
	}
}

func TestNoSecretShowsInSourcesChangesEventsErrorsAndLogs(t *testing.T) {
	h := newHouse(t)
	s := h.create(good())
	_, conflict := h.Create(t.Context(), good(), password, "liisa")
	twin := good()
	twin.ID, twin.Server = "twin", ""
	_, broken := h.Create(t.Context(), twin, password+"\n", "liisa")
	stored, err := h.sources.Get(t.Context(), "sales")
	if err != nil {
		t.Fatal(err)
	}
	read := FileSource{Source: s, Password: password}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "source", s, "file", read, "conflict", conflict, "broken", broken)
	texts := []string{log.String(), h.log.String(), string(stored.Value), conflict.Error(), broken.Error()}
	for _, thing := range []any{
		s, &s, s.Shown(), read, h.told.list, Change{Source: s}, Rules{Password: password}, h.keys, conflict, broken,
	} {
		asJSON, err := json.Marshal(thing)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(asJSON), fmt.Sprintf("%v", thing), fmt.Sprintf("%+v", thing), fmt.Sprintf("%#v", thing))
	}
	for _, text := range texts {
		if strings.Contains(text, password.Reveal()) {
			t.Errorf("the password shows in %s", text)
		}
	}
	shown, err := json.Marshal(s.Shown())
	if err != nil || bytes.Contains(shown, []byte("sealed")) {
		t.Errorf("%v: the sealed password is shown in %s", err, shown)
	}
}

func TestASourceTellsHowToReachIt(t *testing.T) {
	h := newHouse(t)
	for _, test := range []struct {
		protocol mailbox.Protocol
		port     int
		ssl      bool
		want     mailbox.Security
	}{
		{mailbox.IMAP, 993, true, mailbox.ImplicitTLS},
		{mailbox.IMAP, 143, true, mailbox.StartTLS},
		{mailbox.IMAP, 143, false, mailbox.Plain},
		{mailbox.IMAP, 10993, true, mailbox.ImplicitTLS},
		{mailbox.IMAP, 10143, false, mailbox.Plain},
		{mailbox.POP3, 995, true, mailbox.ImplicitTLS},
		{mailbox.POP3, 110, true, mailbox.StartTLS},
		{mailbox.POP3, 110, false, mailbox.Plain},
	} {
		s := good()
		s.Type, s.Port, s.SSL, s.Server = test.protocol, test.port, test.ssl, "sähkö.example"
		if err := s.SealPassword(h.keys, password); err != nil {
			t.Fatal(err)
		}
		got, err := s.Settings(h.keys)
		if err != nil {
			t.Fatal(err)
		}
		if got.Security != test.want || got.Protocol != test.protocol || got.Port != test.port ||
			got.Host != "xn--shk-qla6g.example" || got.Username != s.Username || got.Password != password.Reveal() ||
			got.MaxBody != 50<<20 || got.RootCAs != nil {
			t.Errorf("%v %d ssl=%t: %+v", test.protocol, test.port, test.ssl, got.Security)
		}
	}
}

func TestTheStampHoldsWhatLaterStagesNeed(t *testing.T) {
	s := good()
	s.Revision, s.Epoch, s.RepliesOnly, s.AfterFetch = 7, "e", true, contract.Delete
	want := contract.Stamp{
		Source:   contract.SourceRef{ID: "sales", Name: "Sales inbox", Address: "sales@example.org"},
		Revision: 7, Epoch: "e", Workflow: "sales", RepliesOnly: true, Evidence: "sent", Disposition: contract.Delete,
	}
	if got := s.Stamp("sent"); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestOnlyWhatCanBeDoneIsOrdered(t *testing.T) {
	imap, pop3 := good(), good()
	pop3.Type = mailbox.POP3
	for _, test := range []struct {
		source Source
		what   contract.Disposition
		want   bool
	}{
		{imap, contract.Archive, true}, {imap, contract.Delete, true}, {imap, contract.Leave, false},
		{pop3, contract.Archive, false}, {pop3, contract.Delete, true}, {pop3, contract.Leave, false},
	} {
		if got := test.source.Orders(test.what); got != test.want {
			t.Errorf("%s %s: %t", test.source.Type, test.what, got)
		}
	}
}

func TestUnitsAreReadAndWritten(t *testing.T) {
	for text, want := range map[string]Size{
		"25MB": 25 * MB, "25 mb": 25 * MB, "1GB": GB, "512KB": 512 * KB, "10B": 10, "0B": 0,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "25", "MB", "-1MB", "25 MiBs", "99999999999GB", "1.5MB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%s: %d", text, got)
		}
	}
	for size, want := range map[Size]string{25 * MB: "25MB", 0: "0B", 1025: "1025B", 2048: "2KB", GB: "1GB"} {
		if size.String() != want {
			t.Errorf("%d: %s", size, size)
		}
	}
	for d, want := range map[time.Duration]string{
		90 * time.Second: "90s", time.Hour: "3600s", 0: "0s", 1500 * time.Millisecond: "1.5s",
	} {
		got := Duration(d).String()
		if again, err := ParseDuration(got); got != want || err != nil || again != Duration(d) {
			t.Errorf("%s: %s, %v", d, got, err)
		}
	}
	if _, err := ParseDuration("60"); err == nil || err.Error() != `"60" is no duration: write it like 90s` {
		t.Error(err)
	}
	var s Source
	if err := json.Unmarshal([]byte(`{"max_size":"25MB","poll_interval":"90s"}`), &s); err != nil ||
		s.MaxSize != 25*MB || s.PollInterval != Duration(90*time.Second) {
		t.Errorf("%v, %+v", err, s)
	}
}

func TestEveryFieldAPersonSetsIsCompared(t *testing.T) {
	compared := map[string]bool{}
	for _, field := range fields {
		compared[field.name] = true
	}
	// What the store sets itself never changes alone.
	own := []string{"id", "boundary", "paused_by", "paused_at", "resumed_at", "epoch", "created_at", "-"}
	kind := reflect.TypeFor[Source]()
	for i := range kind.NumField() {
		name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
		if compared[name] == slices.Contains(own, name) {
			t.Errorf("%s: compared %t", name, compared[name])
		}
	}
}
