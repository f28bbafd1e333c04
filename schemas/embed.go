// Package schemas holds the contract of Posthorn's events as JSON Schema (2020-12), one hand-written file per event
// type, and asyncapi.yaml above them. README.md says what a reader may rely on.
package schemas

import (
	"bytes"
	"embed"
	"encoding/json"
	"io/fs"
	"slices"
	"strings"
)

// files: the pattern leaves out examples and decisions, which no program needs.
//
//go:embed *.json asyncapi.yaml
var files embed.FS

// parts holds the definitions that the schemas of events refer to.
const parts = "parts.v1.json"

// FS returns the files as they are: <type>.json, parts.v1.json to which those refer by name, and asyncapi.yaml.
func FS() fs.FS { return files }

// Types returns every event type (`ce-type`) that has a schema, in alphabetical order.
func Types() []string {
	names, err := fs.Glob(files, "posthorn.*.json")
	if err != nil {
		return nil // cannot be: the pattern is well formed
	}
	for i, name := range names {
		names[i] = strings.TrimSuffix(name, ".json")
	}
	slices.Sort(names)
	return names
}

// Schema returns the JSON Schema of an event type as one document that refers to no other file: the shared parts are
// bundled into it (JSON Schema 2020-12 core, section 9.3). It returns false for a type that has none.
func Schema(eventType string) ([]byte, bool) {
	if !slices.Contains(Types(), eventType) {
		return nil, false
	}
	own, err := files.ReadFile(eventType + ".json")
	if err != nil {
		return nil, false
	}
	shared, err := files.ReadFile(parts)
	if err != nil {
		return nil, false
	}
	// Joined as text, so that the keys keep the order they were written in.
	own = bytes.TrimSuffix(bytes.TrimSpace(own), []byte("}"))
	joined := slices.Concat(own, []byte(`, "$defs": {"parts": `), shared, []byte("}}"))
	var bundled bytes.Buffer
	if err := json.Indent(&bundled, joined, "", "  "); err != nil {
		return nil, false
	}
	bundled.WriteByte('\n')
	return bundled.Bytes(), true
}
