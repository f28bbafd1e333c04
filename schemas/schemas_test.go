package schemas_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"posthorn/pkg/contract"
	"posthorn/schemas"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// bodies pairs every event type that has a JSON body with its Go type.
func bodies() map[string]reflect.Type {
	return map[string]reflect.Type{
		contract.TypeParsed:       reflect.TypeFor[contract.ParsedMail](),
		contract.TypeSkipped:      reflect.TypeFor[contract.SkippedMail](),
		contract.TypeEvaluate:     reflect.TypeFor[contract.Evaluate](),
		contract.TypeReceived:     reflect.TypeFor[contract.ContactRequest](),
		contract.TypeReplied:      reflect.TypeFor[contract.ContactRequest](),
		contract.TypeDispose:      reflect.TypeFor[contract.Dispose](),
		contract.TypeDisposed:     reflect.TypeFor[contract.Disposed](),
		contract.TypeDeadLetter:   reflect.TypeFor[contract.DeadLetter](),
		contract.TypeSourceCreate: reflect.TypeFor[contract.SourceEvent](),
		contract.TypeSourceChange: reflect.TypeFor[contract.SourceEvent](),
		contract.TypeSourceRemove: reflect.TypeFor[contract.SourceEvent](),
		contract.TypeSourceState:  reflect.TypeFor[contract.StateEvent](),
		contract.TypeMailboxReset: reflect.TypeFor[contract.MailboxResetEvent](),
		contract.TypeAudit:        reflect.TypeFor[contract.AuditEvent](),
	}
}

func TestEveryEventTypeHasOneSchemaAndOneGoType(t *testing.T) {
	types := []string{contract.TypeRaw} // a mail, not JSON: its schema describes its headers
	for eventType := range bodies() {
		types = append(types, eventType)
	}
	slices.Sort(types)
	if diff := cmp.Diff(constants(t, "Type"), types); diff != "" {
		t.Errorf("constants of pkg/contract (-) and Go types (+):\n%s", diff)
	}
	if diff := cmp.Diff(constants(t, "Type"), schemas.Types()); diff != "" {
		t.Errorf("constants of pkg/contract (-) and schema files (+):\n%s", diff)
	}
}

func TestSchemasAndGoTypesHaveTheSameFields(t *testing.T) {
	for eventType, goType := range bodies() {
		compare(t, eventType, load(t, eventType+".json"), goType)
	}
	headers := load(t, contract.TypeRaw+".json").properties()
	compare(t, "stamp", headers[contract.HeaderStamp].child("contentSchema"), reflect.TypeFor[contract.Stamp]())
	compare(t, "place", headers[contract.HeaderPlace].child("contentSchema"), reflect.TypeFor[contract.Place]())
	known := constants(t, "Header")
	for name := range headers {
		if !slices.Contains(known, name) {
			t.Errorf("%s describes the header %q, which pkg/contract does not know", contract.TypeRaw, name)
		}
	}
}

func TestSchemasStayOpenAndSayWhatEachPropertyIs(t *testing.T) {
	for _, name := range jsonFiles(t) {
		document := load(t, name)
		if id := document.text("$id"); id != name {
			t.Errorf("%s: $id is %q, want the name of the file", name, id)
		}
		document.walk(name, func(where string, n node) {
			if _, closed := n.object["enum"]; closed {
				t.Errorf("%s: a closed list breaks readers at the first new value", where)
			}
			if more, ok := n.object["additionalProperties"]; ok && more == false {
				t.Errorf("%s: additionalProperties false breaks readers at the first new field", where)
			}
			for property, about := range n.children("properties") {
				if about.text("description") == "" && about.follow().text("description") == "" {
					t.Errorf("%s: %s has no description", where, property)
				}
			}
		})
	}
}

func TestExamplesAreValidAndLoseNothingInGo(t *testing.T) {
	for _, eventType := range schemas.Types() {
		schema := compile(t, eventType)
		for name, example := range examples(t, eventType, 2) {
			if err := schema.Validate(decode(t, example)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if eventType == contract.TypeRaw {
				var header map[string]string
				roundTrip(t, name, example, &header)
				roundTrip(t, name, []byte(header[contract.HeaderStamp]), new(contract.Stamp))
				roundTrip(t, name, []byte(header[contract.HeaderPlace]), new(contract.Place))
				continue
			}
			roundTrip(t, name, example, reflect.New(bodies()[eventType]).Interface())
		}
	}
}

func TestAReaderTakesFieldsAndValuesOfTheFuture(t *testing.T) {
	for _, eventType := range schemas.Types() {
		schema := compile(t, eventType)
		for name, example := range examples(t, eventType, 2) {
			body := decode(t, example).(map[string]any)
			body["field_of_the_future"] = map[string]any{"a": "b"}
			for _, open := range []string{"reason", "outcome", "state", "machine", "disposition"} {
				if _, ok := body[open]; ok {
					body[open] = "value-of-the-future"
				}
			}
			if err := schema.Validate(body); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestWrongBodiesAreRefused(t *testing.T) {
	spoil := map[string]struct {
		eventType string
		change    func(body map[string]any)
	}{
		"an event under another's name": {contract.TypeReceived, func(b map[string]any) { b["event"] = "replied" }},
		"a workflow that is no token":   {contract.TypeReceived, func(b map[string]any) { b["workflow"] = "Sales.Team" }},
		"a source by its address": {contract.TypeReceived, func(b map[string]any) {
			b["source"].(map[string]any)["id"] = "sales@example.org"
		}},
		"revision 0":            {contract.TypeReplied, func(b map[string]any) { b["revision"] = 0 }},
		"a time without a zone": {contract.TypeReceived, func(b map[string]any) { b["received_at"] = "2026-11-23T07:41:09" }},
		"attachments without a digest": {contract.TypeReceived, func(b map[string]any) {
			b["attachments"] = []any{map[string]any{"index": 0, "content_type": "a/b", "size": 1}}
		}},
		"no raw mail":          {contract.TypeReplied, func(b map[string]any) { delete(b, "raw") }},
		"a mail key too short": {contract.TypeParsed, func(b map[string]any) { b["mail"] = "abc" }},
		"no stamp":             {contract.TypeEvaluate, func(b map[string]any) { delete(b, "stamp") }},
		"a digest in upper case": {contract.TypeRaw, func(b map[string]any) {
			b[contract.HeaderSHA256] = strings.Repeat("A", 64)
		}},
		"a size that is no digit": {contract.TypeRaw, func(b map[string]any) { b[contract.HeaderSize] = "12 kB" }},
		"an order without a place": {contract.TypeDispose, func(b map[string]any) {
			delete(b, "place")
		}},
		"a negative UID": {contract.TypeDisposed, func(b map[string]any) {
			b["place"].(map[string]any)["uid"] = -1
		}},
		"an outcome unsaid":      {contract.TypeDisposed, func(b map[string]any) { b["outcome"] = "" }},
		"a code with blanks":     {contract.TypeDeadLetter, func(b map[string]any) { b["code"] = "went wrong" }},
		"a state without a time": {contract.TypeSourceState, func(b map[string]any) { delete(b, "since") }},
		"nobody":                 {contract.TypeAudit, func(b map[string]any) { b["actor"] = "" }},
		"a source of no epoch":   {contract.TypeSourceCreate, func(b map[string]any) { delete(b, "epoch") }},
		"a UIDVALIDITY beyond 32 bit": {contract.TypeMailboxReset, func(b map[string]any) {
			b["uid_validity"] = json.Number("4294967296")
		}},
		"a revision as text":  {contract.TypeSourceChange, func(b map[string]any) { b["revision"] = "7" }},
		"a source as text":    {contract.TypeSourceRemove, func(b map[string]any) { b["source"] = "sales" }},
		"a skip unexplained":  {contract.TypeSkipped, func(b map[string]any) { delete(b, "reason") }},
		"a verdict of a skip": {contract.TypeSkipped, func(b map[string]any) { b["reply"] = map[string]any{} }},
	}
	refused := map[string]bool{}
	for name, s := range spoil {
		refused[s.eventType] = true
		for example, content := range examples(t, s.eventType, 2) {
			body := decode(t, content).(map[string]any)
			s.change(body)
			if err := compile(t, s.eventType).Validate(body); err == nil {
				t.Errorf("%s is taken for valid, made from %s", name, example)
			}
		}
	}
	for _, eventType := range schemas.Types() {
		if !refused[eventType] {
			t.Errorf("%s has no wrong body to refuse", eventType)
		}
	}
}

func TestASchemaStandsAloneAndAnUnknownTypeHasNone(t *testing.T) {
	for _, eventType := range schemas.Types() {
		compile(t, eventType) // from the one document: nothing else is there to refer to
	}
	for _, unknown := range []string{"", "parts.v1", "posthorn.nothing.v1", "../go"} {
		if _, ok := schemas.Schema(unknown); ok {
			t.Errorf("a schema for %q", unknown)
		}
	}
}

// compile makes a validator of a bundled schema. Formats are asserted.
func compile(t *testing.T, eventType string) *jsonschema.Schema {
	t.Helper()
	bundled, ok := schemas.Schema(eventType)
	if !ok {
		t.Fatalf("no schema for %s", eventType)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	compiler.DefaultDraft(jsonschema.Draft2020)
	const nowhere = "file:///nowhere/" // so that a reference out of the document finds nothing
	if err := compiler.AddResource(nowhere+eventType+".json", decode(t, bundled)); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile(nowhere + eventType + ".json")
	if err != nil {
		t.Fatalf("%s: %v", eventType, err)
	}
	return schema
}

// roundTrip reads JSON strictly into a Go value and writes it again: the same must come out.
func roundTrip(t *testing.T, name string, in []byte, value any) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(in))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(value); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	out, err := json.Marshal(value)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if diff := cmp.Diff(decode(t, in), decode(t, out)); diff != "" {
		t.Errorf("%s: lost (-) or invented (+):\n%s", name, diff)
	}
}

func decode(t *testing.T, content []byte) any {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("%v in %.80s", err, content)
	}
	return value
}

func examples(t *testing.T, eventType string, atLeast int) map[string][]byte {
	t.Helper()
	names, err := fs.Glob(os.DirFS("."), path.Join("examples", eventType, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < atLeast {
		t.Fatalf("%s has %d examples, want %d or more", eventType, len(names), atLeast)
	}
	found := map[string][]byte{}
	for _, name := range names {
		if found[name], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// compare holds a schema against the Go type that carries it: the same names, the same kinds, and required exactly
// where Go always writes the field.
func compare(t *testing.T, where string, schema node, goType reflect.Type) {
	t.Helper()
	fields := jsonFields(goType)
	properties, required := schema.properties(), schema.required()
	for name := range properties {
		if _, ok := fields[name]; !ok {
			t.Errorf("%s: %s is in the schema and not in %s", where, name, goType)
		}
	}
	for name, f := range fields {
		property, ok := properties[name]
		if !ok {
			t.Errorf("%s: %s is in %s and not in the schema", where, name, goType)
			continue
		}
		if always := !f.optional; always != slices.Contains(required, name) {
			t.Errorf("%s: %s: always written by Go: %t; required by the schema: %t", where, name, always, !always)
		}
		compareValue(t, where+"."+name, property, f.goType)
	}
}

func compareValue(t *testing.T, where string, schema node, goType reflect.Type) {
	t.Helper()
	if goType.Kind() == reflect.Pointer {
		goType = goType.Elem()
	}
	var want string
	switch {
	case goType == reflect.TypeFor[time.Time](), goType == reflect.TypeFor[[]byte](), goType.Kind() == reflect.String:
		want = "string"
	case goType.Kind() == reflect.Struct:
		compare(t, where, schema, goType)
		return
	case goType.Kind() == reflect.Slice:
		compareValue(t, where+"[]", schema.child("items"), goType.Elem())
		want = "array"
	case goType.Kind() == reflect.Map:
		want = "object"
	case goType.Kind() == reflect.Bool:
		want = "boolean"
	default:
		want = "integer"
	}
	if constant, ok := schema.object["const"].(string); ok && want == "string" && constant != "" {
		return
	}
	if got := schema.kind(); got != want {
		t.Errorf("%s is %q in the schema and %s in Go", where, got, goType)
	}
}
