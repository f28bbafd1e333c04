package source

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

func TestAFileThatCannotBeReadInFullIsExplainedInFull(t *testing.T) {
	h := newHouse(t)
	path := filepath.Join(t.TempDir(), "sources.yaml")
	text := `sources:
  - id: sales
    name: Sales
    default_workflow: nosuch
    type: imap
    address: sales@example.org
    server: https://mail.example.org
    port: 25
    username: sales
    password: ${NO_SUCH_VARIABLE}
    colour: blue
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := LoadFile(path, func(string) (string, bool) { return "", false })
	err = Explain(t.Context(), h.Store, file, err)
	problems, ok := errors.AsType[*FileError](err)
	if !ok {
		t.Fatalf("%v", err)
	}
	fields := map[string]int{}
	for _, p := range problems.Problems {
		fields[p.Field]++
	}
	want := map[string]int{"default_workflow": 1, "server": 1, "port": 1, "password": 1, "colour": 1}
	if !maps.Equal(fields, want) {
		t.Errorf("%v\n%v", fields, err)
	}
}

func TestAFileWrittenOnFewLinesIsExplainedInFull(t *testing.T) {
	h := newHouse(t)
	path := filepath.Join(t.TempDir(), "sources.yaml")
	text := `sources:
  - {id: sales, name: Sales, default_workflow: nosuch, type: imap, address: xy, server: mail.example.org, port: 993, ssl: false, username: sales, password: "${NO_SUCH_VARIABLE}"}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := LoadFile(path, func(string) (string, bool) { return "", false })
	problems, ok := errors.AsType[*FileError](Explain(t.Context(), h.Store, file, err))
	if !ok || len(problems.Problems) != 4 { // workflow, address, ssl, password
		t.Errorf("%v", problems)
	}
}
