package schemas_test

import (
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"posthorn/pkg/contract"
	"posthorn/schemas"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

const (
	aSource   = "sales"
	aMail     = "cxdkexdnveauhrpvcm3hjvn2tpjdoyzm"
	aWorkflow = "first-line"
)

// subjects lists every subject that pkg/contract makes, by the event type that travels on it.
func subjects() map[string]string {
	return map[string]string{
		contract.TypeRaw:          contract.RawSubject(aSource, aMail),
		contract.TypeParsed:       contract.ParsedSubject(aSource),
		contract.TypeSkipped:      contract.SkippedSubject(aSource),
		contract.TypeEvaluate:     contract.EvaluateSubject(aSource),
		contract.TypeReceived:     contract.ContactRequestSubject(contract.EventReceived, aWorkflow, aSource, aMail),
		contract.TypeReplied:      contract.ContactRequestSubject(contract.EventReplied, aWorkflow, aSource, aMail),
		contract.TypeDispose:      contract.DisposeSubject(aSource),
		contract.TypeDisposed:     contract.DisposedSubject(aSource),
		contract.TypeDeadLetter:   contract.DeadLetterSubject("parser", aSource, aMail),
		contract.TypeSourceCreate: contract.SourceSubject(contract.SourceCreated, aSource),
		contract.TypeSourceChange: contract.SourceSubject(contract.SourceChanged, aSource),
		contract.TypeSourceRemove: contract.SourceSubject(contract.SourceRemoved, aSource),
		contract.TypeSourceState:  contract.SourceSubject(contract.SourceState, aSource),
		contract.TypeMailboxReset: contract.SourceSubject(contract.SourceMailboxReset, aSource),
		contract.TypeAudit:        contract.AuditSubject("aino", "source-paused"),
	}
}

type channel struct {
	Address    string                       `yaml:"address"`
	Messages   map[string]map[string]string `yaml:"messages"`
	Parameters map[string]any               `yaml:"parameters"`
	JetStream  map[string]any               `yaml:"x-jetstream"`
}

type asyncAPI struct {
	Channels   map[string]channel `yaml:"channels"`
	Operations map[string]struct {
		Action  string            `yaml:"action"`
		Channel map[string]string `yaml:"channel"`
	} `yaml:"operations"`
	Components struct {
		Parameters map[string]any `yaml:"parameters"`
		Messages   map[string]struct {
			Name    string         `yaml:"name"`
			Headers map[string]any `yaml:"headers"`
			Payload map[string]any `yaml:"payload"`
		} `yaml:"messages"`
		Schemas map[string]struct {
			Properties map[string]any `yaml:"properties"`
		} `yaml:"schemas"`
	} `yaml:"components"`
}

func readAsyncAPI(t *testing.T) (asyncAPI, string) {
	t.Helper()
	content, err := fs.ReadFile(schemas.FS(), "asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var document asyncAPI
	if err := yaml.Unmarshal(content, &document); err != nil {
		t.Fatal(err)
	}
	return document, string(content)
}

// fill puts the values of the subjects above into an address.
func fill(address string) string {
	return strings.NewReplacer(
		"{source}", aSource, "{mail}", aMail, "{key}", aMail, "{workflow}", aWorkflow, "{stage}", "parser",
		"{actor}", "aino", "{action}", "source-paused", "{shard}", strconv.Itoa(contract.Shard(aSource)),
	).Replace(address)
}

func TestChannelsAreTheSubjectsOfTheCode(t *testing.T) {
	document, _ := readAsyncAPI(t)
	described := map[string]string{}
	for name, c := range document.Channels {
		if c.JetStream == nil {
			continue // of the content service, below
		}
		if len(c.Messages) != 1 {
			t.Errorf("channel %s carries %d messages, want 1", name, len(c.Messages))
		}
		for _, ref := range c.Messages {
			message := document.Components.Messages[strings.TrimPrefix(ref["$ref"], "#/components/messages/")]
			described[message.Name] = fill(c.Address)
			if file, ok := message.Payload["$ref"]; ok && file != message.Name+".json" {
				t.Errorf("%s has the payload %v", message.Name, file)
			}
		}
	}
	if diff := cmp.Diff(subjects(), described); diff != "" {
		t.Errorf("subjects of pkg/contract (-) and channels of asyncapi.yaml (+):\n%s", diff)
	}
	for _, kind := range []string{contract.ContentRaw, contract.ContentHTML, contract.ContentPart} {
		want := contract.ContentSubject(kind, aSource, aMail)
		if got := fill(document.Channels["content-"+kind].Address); got != want {
			t.Errorf("content of %s is asked for at %s, want %s", kind, got, want)
		}
	}
}

func TestChannelsNameStreamsAndParametersThatExist(t *testing.T) {
	document, text := readAsyncAPI(t)
	placeholder := regexp.MustCompile(`\{([a-z]+)\}`)
	streams := constants(t, "Stream")
	for name, c := range document.Channels {
		var used, declared []string
		for _, match := range placeholder.FindAllStringSubmatch(c.Address, -1) {
			used = append(used, match[1])
		}
		for parameter := range c.Parameters {
			declared = append(declared, parameter)
			if document.Components.Parameters[parameter] == nil {
				t.Errorf("channel %s: the parameter %s is not described", name, parameter)
			}
		}
		slices.Sort(used)
		slices.Sort(declared)
		if !slices.Equal(used, declared) {
			t.Errorf("channel %s: the address has %v, the parameters are %v", name, used, declared)
		}
		if c.JetStream != nil && !slices.Contains(streams, fmt.Sprint(c.JetStream["stream"])) {
			t.Errorf("channel %s is in the stream %v, which does not exist", name, c.JetStream["stream"])
		}
	}
	for name, o := range document.Operations {
		if _, ok := document.Channels[strings.TrimPrefix(o.Channel["$ref"], "#/channels/")]; !ok {
			t.Errorf("operation %s works on %v", name, o.Channel)
		}
	}
	for _, header := range constants(t, "Header") {
		raw, _ := schemas.Schema(contract.TypeRaw)
		if !strings.Contains(text+string(raw), header) {
			t.Errorf("the header %s is described nowhere", header)
		}
	}
	for _, value := range constants(t, "Content") {
		if !strings.Contains(text, value) {
			t.Errorf("%s is described nowhere", value)
		}
	}
}

func TestEveryHeaderNameIsWrittenAsTheContractWritesIt(t *testing.T) {
	document, _ := readAsyncAPI(t)
	known := constants(t, "Header")
	for name := range document.Components.Schemas["headers"].Properties {
		if !slices.Contains(known, name) {
			t.Errorf("the header %q is no constant of pkg/contract", name)
		}
	}
	for name := range document.Components.Messages["content-chunk"].Headers["properties"].(map[string]any) {
		if !slices.Contains(known, name) {
			t.Errorf("the header %q is no constant of pkg/contract", name)
		}
	}
}
