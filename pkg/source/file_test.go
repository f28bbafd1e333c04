package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/secret"
)

func environment(name string) (string, bool) {
	value, ok := map[string]string{
		"SALES_PASSWORD": "from-the-environment", "INFO_PASSWORD": "file:x ${NOT} $$", "HOST": "mail.example.org",
		"PORT": "143", "EMPTY": "",
	}[name]
	return value, ok
}

// load writes a sources file and loads it.
func load(t *testing.T, text string) (File, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sources.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return LoadFile(path, environment)
}

func mustLoad(t *testing.T, text string) File {
	t.Helper()
	file, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestTheDocumentedExampleSaysWhatItSays(t *testing.T) {
	file, err := LoadFile("testdata/full.yaml", environment)
	if err != nil {
		t.Fatal(err)
	}
	workflows := fmt.Sprint(file.Workflows[0].Workflow, file.Workflows[1].Workflow)
	if workflows != "{sales Sales true 0} {billing Billing true 0}" {
		t.Error(workflows)
	}
	pem, err := os.ReadFile("testdata/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	sales, billing, info := New(), New(), New()
	sales.ID, sales.Name, sales.DefaultWorkflow, sales.ManagedBy = "sales", "Sales inbox", "sales", ByFile
	sales.Address, sales.Server, sales.Port = "sales@example.org", "mail.example.org", 993
	sales.Username = "sales@example.org"
	billing.ID, billing.Name, billing.DefaultWorkflow, billing.ManagedBy = "billing", "Billing", "billing", ByFile
	billing.Description, billing.Address = "Invoices and reminders", "billing@example.org"
	billing.Server, billing.Port, billing.Username = "mail.example.org", 143, "billing@example.org"
	billing.AfterFetch, billing.RepliesOnly, billing.ArchiveMailbox = contract.Leave, true, "Done"
	billing.MaxSize, billing.PollInterval, billing.CA = 25*MB, Duration(90*time.Second), string(pem)
	billing.ReplyEvidence, billing.ImportFrom, billing.Paused = EvidenceHeader, "2026-11-01", true
	info.ID, info.Name, info.DefaultWorkflow, info.ManagedBy = "info", "Info", "sales", ByFile
	info.Type, info.Address, info.Server, info.Port = mailbox.POP3, "info@example.org", "pop.example.org", 995
	info.Username, info.AfterFetch = "info", contract.Delete
	passwords := []secret.Secret{"from-the-environment", "from-a-file", "file:x ${NOT} $$"}
	for i, want := range []Source{sales, billing, info} {
		if got := file.Sources[i]; !reflect.DeepEqual(got.Source, want) || got.Password != passwords[i] {
			t.Errorf("got  %+v\nwant %+v\npassword %q", got.Source, want, got.Password.Reveal())
		}
	}
	h := newHouse(t)
	report, err := Apply(t.Context(), h.Store, file, ApplyOptions{})
	if err != nil || !slices.Equal(report.Created, []string{"sales", "billing", "info"}) {
		t.Errorf("%v, %+v", err, report)
	}
}

func TestTheDocumentedExampleHasEveryKey(t *testing.T) {
	text, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range append(slices.Clone(sourceKeys), workflowKeys...) {
		if key != "oauth2" && !strings.Contains(string(text), key+": ") {
			t.Errorf("%s is not in the example", key)
		}
	}
}

// head and tail surround one value under test.
const minimal = `sources:
  - id: sales
    name: Sales
    default_workflow: sales
    address: sales@example.org
    server: mail.example.org
    port: 993
    username: sales
`

func TestWhatIsWrongWithAFileIsNamedWithLineSourceAndField(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"empty":        {"", "FILE: The file is empty. Write `sources: []` if there shall be no source."},
		"only remarks": {"# nothing\n", "FILE: The file is empty. Write `sources: []` if there shall be no source."},
		"no sources": {
			"workflows: []\n",
			"FILE: sources: The file names no sources. Write `sources: []` if there shall be none.",
		},
		"a list": {"- a\n", "FILE:1: Write the file as `key: value` lines."},
		"two documents": {"sources: []\n---\nsources: []\n",
			"FILE:3: The file holds more than one document. Write one only."},
		"no YAML": {
			"sources:\n  - id: [\n",
			"FILE:2: The file is not written as YAML: sequence end token ']' not found.",
		},
		"sources is a mapping": {
			"sources: {id: x}\n",
			"FILE:1: sources: Write a list here: each source starts with a dash.",
		},
		"a source is a word":  {"sources:\n  - sales\n", "FILE:2: source 1: Write a source as `key: value` lines."},
		"a source is nothing": {"sources:\n  -\n", "FILE:2: source 1: Write a source as `key: value` lines."},
		"unknown key at the top": {"sources: []\nsource: []\n",
			"FILE:2: source: There is no such key. Did you mean sources?"},
		"unknown key": {
			minimal + "    pasword: x\n",
			"FILE:9: sales: pasword: There is no such key. Did you mean password?",
		},
		"wrong case": {minimal + "    SSL: true\n", "FILE:9: sales: SSL: There is no such key. Did you mean ssl?"},
		"unknown key like no other": {"workflows:\n  - {id: a, color: red}\nsources: []\n",
			"FILE:2: workflow a: color: There is no such key. The keys of a workflow are: id, name, published."},
		"key twice": {minimal + "    port: 143\n", "FILE:9: sales: port: The key stands in line 7 already."},
		"id missing": {
			"sources:\n  - name: Sales\n    server: x\n",
			"FILE:2: source 1: id: Give the source an id: 1 to 64 characters of a-z, 0-9, _ and -.",
		},
		"id empty": {
			"sources:\n  - id:\n",
			"FILE:2: source 1: id: Give the source an id: 1 to 64 characters of a-z, 0-9, _ and -.",
		},
		"id twice": {
			"sources:\n  - id: a\n  - id: b\n  - id: a\n",
			"FILE:4: a: id: The id \"a\" is used in line 2 already.",
		},
		"a variable not there": {
			minimal + "    password: ${NOPE}\n",
			"FILE:9: sales: password: The environment variable NOPE is not set.",
		},
		"a variable not closed": {
			minimal + "    password: ${NOPE\n",
			"FILE:9: sales: password: A variable is written ${NAME}; for a dollar sign before a brace write $${.",
		},
		"a variable of no name": {
			minimal + "    description: \"${1x}\"\n",
			"FILE:9: sales: description: A variable is written ${NAME}; for a dollar sign before a brace write $${.",
		},
		"a variable in an id": {
			"sources:\n  - id: ${NOPE}\n",
			"FILE:2: source 1: id: The environment variable NOPE is not set.",
		},
		"a file not there": {minimal + "    password: file:nope\n",
			"FILE:9: sales: password: The file DIR/nope cannot be read: no such file or directory."},
		"a directory": {
			minimal + "    password: file:.\n",
			"FILE:9: sales: password: The file DIR cannot be read: is a directory.",
		},
		"no CA": {
			minimal + "    ca_file: nope.pem\n",
			"FILE:9: sales: ca_file: The file DIR/nope.pem cannot be read: no such file or directory.",
		},
		"ssl is a word":  {minimal + "    ssl: maybe\n", "FILE:9: sales: ssl: Write true or false."},
		"ssl is nothing": {minimal + "    ssl:\n", "FILE:9: sales: ssl: Write true or false."},
		"description is list": {
			minimal + "    description: [a, b]\n",
			"FILE:9: sales: description: Write a single value here: no list, no mapping, no anchor.",
		},
		"an anchor": {
			minimal + "    description: &x y\n",
			"FILE:9: sales: description: Write a single value here: no list, no mapping, no anchor.",
		},
		"a size without unit": {
			minimal + "    max_size: 25\n",
			"FILE:9: sales: max_size: \"25\" is no size: write it like 25MB.",
		},
		"a bare interval": {
			minimal + "    poll_interval: 60\n",
			"FILE:9: sales: poll_interval: \"60\" is no duration: write it like 90s.",
		},
		"oauth2": {
			minimal + "    oauth2: {provider: x}\n",
			"FILE:9: sales: oauth2: Signing in with OAuth2 is not available yet. Use a password or an app password for now.",
		},
		"contradiction": {minimal + "    after_fetch: archive\n    delete_fetched: true\n",
			"FILE:10: sales: delete_fetched: delete_fetched is true, but after_fetch is archive. Keep one of them."},
		"contradiction the other way": {minimal + "    delete_fetched: false\n    after_fetch: delete\n",
			"FILE:9: sales: delete_fetched: delete_fetched is false, but after_fetch is delete. Keep one of them."},
		"a port in words": {
			"sources:\n  - id: a\n    port: imaps\n",
			"FILE:3: a: port: \"imaps\" is no port: write a number such as 993.",
		},
		"everything at once": {
			"sources:\n  - id: a\n    ssl: 1\n    nmae: x\n" +
				"  - name: b\n    password: ${NOPE}\n    max_size: big\n",
			"FILE:3: a: ssl: Write true or false.\n" +
				"FILE:4: a: nmae: There is no such key. Did you mean name?\n" +
				"FILE:5: source 2: id: Give the source an id: 1 to 64 characters of a-z, 0-9, _ and -.\n" +
				"FILE:6: source 2: password: The environment variable NOPE is not set.\n" +
				"FILE:7: source 2: max_size: \"big\" is no size: write it like 25MB."},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := load(t, test.text)
			problems, ok := errors.AsType[*FileError](err)
			if !ok {
				t.Fatalf("%v, %+v", err, file)
			}
			dir := filepath.Dir(problems.Path)
			got := strings.NewReplacer(problems.Path, "FILE", dir, "DIR").Replace(err.Error())
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestAFileThatIsNotThereIsSaidSo(t *testing.T) {
	_, err := LoadFile("/nowhere/sources.yaml", environment)
	if err == nil || err.Error() != "/nowhere/sources.yaml: The sources file cannot be read: no such file or directory." {
		t.Error(err)
	}
}

func TestValuesAreTakenAsTheyAreWritten(t *testing.T) {
	for written, want := range map[string]string{
		"0123":             "0123",
		"1e3":              "1e3",
		"true":             "true",
		"'a b'":            "a b",
		`"a\tb"`:           "a\tb",
		"p$w$":             "p$w$",
		"a$$b":             "a$b",
		"$${HOST}":         "${HOST}",
		"x${HOST}y$$":      "xmail.example.orgy$",
		"${EMPTY}":         "",
		"${INFO_PASSWORD}": "file:x ${NOT} $$",
		"|-\n      a#b":    "a#b",
	} {
		file := mustLoad(t, minimal+"    password: "+written+"\n")
		if got := file.Sources[0].Password.Reveal(); got != want {
			t.Errorf("%s: got %q, want %q", written, got, want)
		}
	}
	file := mustLoad(t, strings.NewReplacer("mail.example.org", "${HOST}", "993", "${PORT}").Replace(minimal))
	if s := file.Sources[0].Source; s.Server != "mail.example.org" || s.Port != 143 {
		t.Errorf("server %q, port %d", s.Server, s.Port)
	}
}

func TestDeleteFetchedIsShortForDelete(t *testing.T) {
	for text, want := range map[string]contract.Disposition{
		"":                      contract.Archive,
		"delete_fetched: false": contract.Archive,
		"delete_fetched: true":  contract.Delete,
		"after_fetch: leave":    contract.Leave,
		"{after_fetch: delete, delete_fetched: true}": contract.Delete,
		"{after_fetch: leave, delete_fetched: false}": contract.Leave,
	} {
		lines := strings.NewReplacer("{", "", "}", "", ", ", "\n    ").Replace(text)
		if got := mustLoad(t, minimal+"    "+lines+"\n").Sources[0].Source.AfterFetch; got != want {
			t.Errorf("%q: %s", text, got)
		}
	}
}

func TestAPasswordFileMayEndInOneLineBreak(t *testing.T) {
	for text, want := range map[string]string{"a": "a", "a\n": "a", "a\r\n": "a", "a\n\n": "a\n", " a ": " a "} {
		path := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := mustLoad(t, minimal+"    password: file:"+path+"\n").Sources[0].Password.Reveal(); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

const two = `workflows:
  - {id: sales, name: Sales}
  - {id: support, name: Support}
sources:
  - id: a
    name: A
    default_workflow: sales
    address: a@example.org
    server: mail.example.org
    port: 993
    username: a
    password: secret-a
  - id: b
    name: B
    default_workflow: support
    address: b@example.org
    server: mail.example.org
    port: 993
    username: b
    password: secret-b
`

// onlyA is two without its second source.
var onlyA = two[:strings.Index(two, "  - id: b\n")]

func (h *house) apply(text string, options ApplyOptions) string {
	h.t.Helper()
	report, err := Apply(h.t.Context(), h.Store, mustLoad(h.t, text), options)
	if err != nil {
		h.t.Fatal(err)
	}
	return shownReport(report)
}

func shownReport(r Report) string {
	var parts []string
	for _, part := range []struct {
		name string
		ids  []string
	}{
		{"created", r.Created}, {"changed", r.Changed}, {"unchanged", r.Unchanged}, {"missing", r.Missing},
		{"paused", r.Paused}, {"removed", r.Removed}, {"workflows", r.Workflows},
	} {
		if len(part.ids) > 0 {
			parts = append(parts, part.name+" "+strings.Join(part.ids, ","))
		}
	}
	for _, id := range r.Changed {
		parts = append(parts, id+"="+strings.Join(r.Fields[id], ","))
	}
	return strings.Join(parts, "; ")
}

func TestApplyingAFileTwiceChangesNothing(t *testing.T) {
	h := newHouse(t)
	if got := h.apply(two, ApplyOptions{}); got != "created a,b; workflows support" {
		t.Error(got)
	}
	writes, events := h.sources.writes()+h.workflows.writes(), len(h.told.list)
	if got := h.apply(two, ApplyOptions{}); got != "unchanged a,b" {
		t.Error(got)
	}
	if h.sources.writes()+h.workflows.writes() != writes || len(h.told.list) != events {
		t.Error("something was written or announced")
	}
}

func TestOnlyWhatChangedIsWritten(t *testing.T) {
	h := newHouse(t)
	h.apply(two, ApplyOptions{By: "liisa"})
	if got := h.told.last(); got != "created source-created b liisa" {
		t.Error(got)
	}
	edit := strings.NewReplacer("secret-b", "new", "name: A\n", "name: Alpha\n", "name: Support", "name: Help")
	changed := edit.Replace(two)
	if got := h.apply(changed, ApplyOptions{}); got != "changed a,b; workflows support; a=name; b=password" {
		t.Error(got)
	}
	if got := h.password("b"); got != "new" {
		t.Errorf("password %q", got.Reveal())
	}
	if got := h.told.last(); got != "changed source-changed b file password" {
		t.Error(got)
	}
}

func TestADryRunSaysWhatWouldBeDoneAndDoesNothing(t *testing.T) {
	h := newHouse(t)
	dry := ApplyOptions{DryRun: true}
	if got := h.apply(two, dry); got != "created a,b; workflows support" {
		t.Error(got)
	}
	if h.sources.writes() != 0 {
		t.Fatal("written")
	}
	h.apply(two, ApplyOptions{})
	writes := h.sources.writes()
	got := h.apply(strings.ReplaceAll(onlyA, "secret-a", "x"), dry)
	if got != "changed a; missing b; paused b; a=password" {
		t.Error(got)
	}
	if got := h.apply(onlyA, ApplyOptions{DryRun: true, Prune: true}); got != "unchanged a; removed b" {
		t.Error(got)
	}
	if h.sources.writes() != writes {
		t.Error("written")
	}
}

func TestASourceThatLeavesTheFileIsPausedAndResumedWhenItComesBack(t *testing.T) {
	h := newHouse(t)
	h.apply(two, ApplyOptions{})
	if got := h.apply(onlyA, ApplyOptions{By: "liisa"}); got != "unchanged a; missing b; paused b" {
		t.Error(got)
	}
	b, err := h.Get(t.Context(), "b")
	if err != nil || !b.Paused || b.PausedBy != ByFile {
		t.Fatalf("%v, %+v", err, b)
	}
	if got := h.told.last(); got != "changed source-paused b liisa paused" {
		t.Error(got)
	}
	if got := h.apply(onlyA, ApplyOptions{}); got != "unchanged a; missing b" {
		t.Error(got)
	}
	if got := h.apply(two, ApplyOptions{}); got != "changed b; unchanged a; b=paused" {
		t.Error(got)
	}
	if b, err = h.Get(t.Context(), "b"); err != nil || b.Paused {
		t.Errorf("%v, %+v", err, b)
	}
}

func TestPruningRemovesWhatTheFileDoesNotName(t *testing.T) {
	h := newHouse(t)
	mine := good()
	h.create(mine)
	h.apply(two, ApplyOptions{})
	if got := h.apply(onlyA, ApplyOptions{Prune: true}); got != "unchanged a; removed b" {
		t.Error(got)
	}
	_, err := h.Get(t.Context(), "b")
	wantCode(t, err, fault.StoreNotFound)
	if _, err := h.Get(t.Context(), mine.ID); err != nil {
		t.Errorf("a source that is managed elsewhere was removed: %v", err)
	}
}

func TestASourceThatGetsANewIDTakesThePlaceOfTheOldOneWithPrune(t *testing.T) {
	h := newHouse(t)
	h.apply(two, ApplyOptions{})
	renamed := strings.ReplaceAll(two, "id: b\n", "id: c\n")
	if _, err := Apply(t.Context(), h.Store, mustLoad(t, renamed), ApplyOptions{}); err == nil {
		t.Fatal("two sources read one account")
	}
	if got := h.apply(renamed, ApplyOptions{Prune: true}); got != "created c; unchanged a; removed b" {
		t.Error(got)
	}
}

func TestWhatAPersonPausedStaysPaused(t *testing.T) {
	h := newHouse(t)
	h.apply(two, ApplyOptions{})
	if _, err := h.Pause(t.Context(), "a", "liisa"); err != nil {
		t.Fatal(err)
	}
	if got := h.apply(two, ApplyOptions{}); got != "unchanged a,b" {
		t.Error(got)
	}
	h.apply("sources: []\n", ApplyOptions{})
	h.apply(two, ApplyOptions{})
	if a, err := h.Get(t.Context(), "a"); err != nil || !a.Paused || a.PausedBy != "liisa" {
		t.Errorf("%v, paused by %q", err, a.PausedBy)
	}
	if _, err := h.Resume(t.Context(), "a", "liisa"); err != nil {
		t.Error(err)
	}
}

func TestAFileMayPauseASource(t *testing.T) {
	h := newHouse(t)
	paused := two + "    paused: true\n"
	h.apply(paused, ApplyOptions{By: "liisa"})
	b, err := h.Get(t.Context(), "b")
	if err != nil || !b.Paused || b.PausedBy != ByFile {
		t.Errorf("%v, paused by %q", err, b.PausedBy)
	}
	if got := h.apply(paused, ApplyOptions{}); got != "unchanged a,b" {
		t.Error(got)
	}
	if got := h.apply(two, ApplyOptions{}); got != "changed b; unchanged a; b=paused" {
		t.Error(got)
	}
}

func TestASourceFromAFileIsReadOnlyElsewhere(t *testing.T) {
	h := newHouse(t)
	h.apply(two, ApplyOptions{})
	a, err := h.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	a.Name = "Mine"
	_, err = h.Update(t.Context(), a, "", "liisa")
	wantCode(t, err, fault.PolicyManagedByFile)
	a.ManagedBy = ""
	_, err = h.Update(t.Context(), a, "", "liisa")
	wantCode(t, err, fault.PolicyManagedByFile)
	_, err = h.SetPassword(t.Context(), "a", a.Revision, "x", "liisa")
	wantCode(t, err, fault.PolicyManagedByFile)
	wantCode(t, h.Delete(t.Context(), "a", a.Revision, "liisa"), fault.PolicyManagedByFile)
	if want := "policy.managed_by_file: the source a is managed by a sources file"; err.Error() != want {
		t.Errorf("got %q", err)
	}
	if err := h.Retry(t.Context(), "a", "liisa"); err != nil {
		t.Error(err)
	}
	if _, err := h.Pause(t.Context(), "a", "liisa"); err != nil {
		t.Error(err)
	}
}

func TestNothingIsWrittenWhenAnythingIsWrong(t *testing.T) {
	h := newHouse(t)
	h.create(good())
	writes := h.sources.writes() + h.workflows.writes()
	edit := strings.NewReplacer("id: a\n", "id: sales\n", "port: 993\n    username: b", "port: 25\n    username: a")
	text := edit.Replace(two) +
		"  - id: c\n    name: Sales inbox\n    default_workflow: hidden\n"
	text = strings.Replace(text, "{id: support, name: Support}", "{id: hidden, name: Sales, published: false}", 1)
	_, err := Apply(t.Context(), h.Store, mustLoad(t, text), ApplyOptions{})
	problems, ok := errors.AsType[*FileError](err)
	if !ok {
		t.Fatalf("%v", err)
	}
	got := strings.ReplaceAll(problems.Error(), problems.Path, "FILE")
	want, err := os.ReadFile("testdata/problems.golden")
	if err != nil {
		t.Fatal(err)
	}
	if got+"\n" != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if h.sources.writes()+h.workflows.writes() != writes {
		t.Error("something was written")
	}
}

func TestAFileCannotHideAWorkflowThatOthersUse(t *testing.T) {
	h := newHouse(t)
	h.create(good())
	hidden := mustLoad(t, "workflows:\n  - {id: sales, name: Sales, published: false}\nsources: []\n")
	_, err := Apply(t.Context(), h.Store, hidden, ApplyOptions{})
	if err == nil || !strings.HasSuffix(err.Error(), "New requests of these sources go to this workflow: sales. "+
		"Give them another default workflow first.") {
		t.Error(err)
	}
}

func TestAStoreThatFailsIsReportedWithWhatWasDone(t *testing.T) {
	h := newHouse(t)
	h.sources.fail = fault.New(fault.StoreUnavailable, nil, nil)
	report, err := Apply(t.Context(), h.Store, mustLoad(t, two), ApplyOptions{})
	wantCode(t, err, fault.StoreUnavailable)
	if got := shownReport(report); got != "workflows support" {
		t.Error(got)
	}
	h.sources.fail = nil
	if got := h.apply(two, ApplyOptions{}); got != "created a,b" {
		t.Error(got)
	}
}

func TestALostKeyIsHealedByApplyingTheFile(t *testing.T) {
	h := newHouse(t)
	h.apply(two, ApplyOptions{})
	keys, err := secret.LoadOrCreate(filepath.Join(t.TempDir(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	h.keys = keys
	if got := h.apply(two, ApplyOptions{}); got != "changed a,b; a=password; b=password" {
		t.Error(got)
	}
	if got := h.password("a"); got != "secret-a" {
		t.Errorf("password %q", got.Reveal())
	}
}

// TestApplyIsIdempotent applies files after one another: after each, applying it once more changes nothing, and the
// sources of the file are what the file says.
func TestApplyIsIdempotent(t *testing.T) {
	h := newHouse(t)
	if _, err := h.CreateWorkflow(t.Context(), General(), "test"); err != nil {
		t.Fatal(err)
	}
	one := rapid.Custom(func(r *rapid.T) FileSource {
		s := good()
		s.ID = rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(r, "id")
		s.Name, s.Username, s.ManagedBy = "Name "+s.ID, s.ID, ByFile
		s.Description = rapid.SampledFrom([]string{"", "x", "  y "}).Draw(r, "description")
		s.Server = rapid.SampledFrom([]string{"mail.example.org", "MAIL.example.org.", "imap.example.org"}).Draw(r, "server")
		s.DefaultWorkflow = rapid.SampledFrom([]string{"sales", "general"}).Draw(r, "workflow")
		s.Port = rapid.SampledFrom([]int{143, 993}).Draw(r, "port")
		s.RepliesOnly = rapid.Bool().Draw(r, "replies_only")
		s.ImportFrom = rapid.SampledFrom([]string{ImportAll, ImportNow, "2026-11-23"}).Draw(r, "import_from")
		s.Paused = rapid.Bool().Draw(r, "paused")
		return FileSource{Source: s, Password: secret.Secret(rapid.SampledFrom([]string{"p", "q"}).Draw(r, "password"))}
	})
	ctx := context.Background()
	rapid.Check(t, func(r *rapid.T) {
		sources := rapid.SliceOfNDistinct(one, 0, 4, func(s FileSource) string { return s.Source.ID }).Draw(r, "sources")
		if id := rapid.SampledFrom([]string{"", "a", "b"}).Draw(r, "somebody pauses"); id != "" {
			if _, err := h.Pause(ctx, id, "liisa"); err != nil && fault.CodeOf(err) != fault.StoreNotFound {
				r.Fatal(err)
			}
		}
		file, options := File{Path: "x", Sources: sources}, ApplyOptions{Prune: rapid.Bool().Draw(r, "prune")}
		if _, err := Apply(ctx, h.Store, file, options); err != nil {
			r.Fatal(err)
		}
		h.clock = h.clock.Add(time.Minute)
		writes := h.sources.writes()
		report, err := Apply(ctx, h.Store, file, options)
		if err != nil || len(report.Unchanged) != len(sources) || len(report.Paused)+len(report.Removed) > 0 ||
			h.sources.writes() != writes {
			r.Fatalf("%v, %s", err, shownReport(report))
		}
		for _, want := range sources {
			got, err := h.Get(ctx, want.Source.ID)
			if err != nil {
				r.Fatal(err)
			}
			differs := changed(got, want.Source.normal())
			if got.PausedBy == "liisa" {
				differs = slices.DeleteFunc(differs, func(field string) bool { return field == "paused" })
			}
			if len(differs) > 0 || h.password(got.ID) != want.Password {
				r.Fatalf("%s differs in %v", got.ID, differs)
			}
		}
	})
}

func FuzzASourcesFileIsReadOrRefusedWithASentence(f *testing.F) {
	full, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	for _, text := range []string{
		two, minimal, "", "sources: []", "- a", "sources: {a: *b}", "? a\n: b", "<<: {sources: []}", "sources: !!binary x",
		"sources: [{id: a, id: b}]", "a: |\n b", "%YAML 1.1\n---\n",
		"sources:\n - &a\n   id: *a", "\"\\u0000\": x", "sources:\n  - {}\n",
		"sources:\n- id: \"\n", "sources: [[[[", "{", "sources: [~]", "sources: [.nan, -.inf]", "\xff\xfe",
	} {
		f.Add([]byte(text))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 8<<10 { // deep nesting takes long
			return
		}
		path := filepath.Join(dir, "sources.yaml")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadFile(path, environment)
		if err == nil {
			return
		}
		problems, ok := errors.AsType[*FileError](err)
		if !ok || len(problems.Problems) == 0 {
			t.Fatalf("%T %v", err, err)
		}
		for _, problem := range problems.Problems {
			text := problem.Message + problem.Field + problem.Source
			if problem.Message == "" || problem.Rule == "" || strings.ContainsAny(text, "\n\r\x00") {
				t.Errorf("%+v", problem)
			}
		}
	})
}
