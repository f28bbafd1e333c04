package schemas_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"posthorn/schemas"
)

// node is one schema inside a file, with the file it stands in, so that references can be followed.
type node struct {
	t      *testing.T
	file   string
	object map[string]any
}

func jsonFiles(t *testing.T) []string {
	t.Helper()
	names, err := fs.Glob(schemas.FS(), "*.json")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func load(t *testing.T, file string) node {
	t.Helper()
	content, err := fs.ReadFile(schemas.FS(), file)
	if err != nil {
		t.Fatal(err)
	}
	return node{t, file, decode(t, content).(map[string]any)}
}

func (n node) text(key string) string {
	s, _ := n.object[key].(string)
	return s
}

func (n node) child(key string) node {
	n.t.Helper()
	object, ok := n.object[key].(map[string]any)
	if !ok {
		n.t.Fatalf("%s: no %s in %v", n.file, key, n.object)
	}
	return node{n.t, n.file, object}
}

func (n node) children(key string) map[string]node {
	found := map[string]node{}
	group, _ := n.object[key].(map[string]any)
	for name, child := range group {
		if object, ok := child.(map[string]any); ok {
			found[name] = node{n.t, n.file, object}
		}
	}
	return found
}

// follow returns what a reference points to; of a node without one, a node that says nothing.
func (n node) follow() node {
	n.t.Helper()
	ref := n.text("$ref")
	if ref == "" {
		return node{n.t, n.file, nil}
	}
	file, pointer, _ := strings.Cut(ref, "#/")
	if file == "" {
		file = n.file
	}
	target := load(n.t, file)
	for part := range strings.SplitSeq(pointer, "/") {
		target = target.child(part)
	}
	return target
}

// properties of the schema and of what it refers to; its own win.
func (n node) properties() map[string]node {
	if n.object == nil {
		return map[string]node{}
	}
	all := n.follow().properties()
	for name, child := range n.children("properties") {
		all[name] = child
	}
	return all
}

func (n node) required() []string {
	if n.object == nil {
		return nil
	}
	all := n.follow().required()
	names, _ := n.object["required"].([]any)
	for _, name := range names {
		all = append(all, fmt.Sprint(name))
	}
	return all
}

func (n node) kind() string {
	if n.object == nil {
		return ""
	}
	if kind := n.text("type"); kind != "" {
		return kind
	}
	return n.follow().kind()
}

// walk visits the node and every schema below it.
func (n node) walk(where string, visit func(string, node)) {
	visit(where, n)
	for _, group := range []string{"properties", "$defs"} {
		for name, child := range n.children(group) {
			child.walk(where+"/"+name, visit)
		}
	}
	for _, single := range []string{"items", "contentSchema"} {
		if object, ok := n.object[single].(map[string]any); ok {
			node{n.t, n.file, object}.walk(where+"/"+single, visit)
		}
	}
}

type field struct {
	goType   reflect.Type
	optional bool
}

// jsonFields lists the JSON names of a struct; embedded structs count as its own.
func jsonFields(goType reflect.Type) map[string]field {
	fields := map[string]field{}
	for f := range fieldsOf(goType) {
		if f.Anonymous {
			for name, inner := range jsonFields(f.Type) {
				fields[name] = inner
			}
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		fields[name] = field{f.Type, strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero")}
	}
	return fields
}

func fieldsOf(goType reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range goType.NumField() {
			if !yield(goType.Field(i)) {
				return
			}
		}
	}
}

// constants returns the values of the string constants of pkg/contract whose names begin with prefix, sorted.
func constants(t *testing.T, prefix string) []string {
	t.Helper()
	names, err := filepath.Glob("../pkg/contract/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for _, name := range names {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || !strings.HasPrefix(spec.Names[0].Name, prefix) || len(spec.Values) != 1 {
				return true
			}
			if literal, ok := spec.Values[0].(*ast.BasicLit); ok && literal.Kind == token.STRING {
				value, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				values = append(values, value)
			}
			return true
		})
	}
	slices.Sort(values)
	return values
}
