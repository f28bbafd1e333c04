// Package posthorn_test holds the rules of the house, so that nobody has to remember them.
package posthorn_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
)

const toolchain = "go1.26.11"

func TestEveryPackageHasOneDocComment(t *testing.T) {
	docs, packages := map[string][]string{}, map[string]bool{}
	for _, f := range goFiles(t) {
		if f.test {
			continue
		}
		packages[f.dir] = true
		if f.syntax.Doc != nil {
			docs[f.dir] = append(docs[f.dir], f.path)
		}
	}
	for dir := range packages {
		switch n := len(docs[dir]); n {
		case 0:
			t.Errorf("%s: no file has a package comment", dir)
		case 1:
		default:
			t.Errorf("%s: %d files have a package comment: %v", dir, n, docs[dir])
		}
	}
}

func TestEveryExportedNameIsDocumented(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test || !under(f.dir, "pkg", "services", "schemas") || f.generated {
			continue
		}
		for _, declaration := range f.syntax.Decls {
			for _, name := range undocumented(declaration) {
				t.Errorf("%s: %s has no doc comment", f.where(declaration), name)
			}
		}
	}
}

// undocumented lists the exported names of a declaration that no comment explains. A comment on a group, or at the end
// of a line in it, explains its members.
func undocumented(declaration ast.Decl) []string {
	var names []string
	switch d := declaration.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) {
			names = append(names, d.Name.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
					names = append(names, s.Name.Name)
				}
			case *ast.ValueSpec:
				for _, name := range s.Names {
					if name.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
						names = append(names, name.Name)
					}
				}
			}
		}
	}
	return names
}

func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	receiver := f.Recv.List[0].Type
	for {
		switch r := receiver.(type) {
		case *ast.StarExpr:
			receiver = r.X
		case *ast.IndexExpr:
			receiver = r.X
		case *ast.IndexListExpr:
			receiver = r.X
		case *ast.Ident:
			return r.IsExported()
		default:
			return true
		}
	}
}

// The import fences of ARCHITECTURE.md.
func TestTheImportFencesHold(t *testing.T) {
	for _, f := range goFiles(t) {
		room, inServices := strings.CutPrefix(f.dir, "services/")
		room, _, _ = strings.Cut(room, "/")
		for _, imported := range f.imports {
			deny := func(rule string) { t.Errorf("%s imports %s: %s", f.path, imported, rule) }
			other, isRoom := strings.CutPrefix(imported, "posthorn/services/")
			other, _, _ = strings.Cut(other, "/")
			if isRoom && under(f.dir, "pkg", "schemas") {
				deny("pkg never imports services")
			}
			if isRoom && inServices && other != room && room != "allinone" && room != "posthorn" {
				deny("rooms never import each other")
			}
			if f.test {
				continue
			}
			standard := !strings.Contains(strings.Split(imported, "/")[0], ".") && !strings.HasPrefix(imported, "posthorn/")
			nats := strings.HasPrefix(imported, "github.com/nats-io/") ||
				strings.HasPrefix(imported, "github.com/synadia-io/")
			switch {
			case f.dir == "pkg/contract" && !standard:
				deny("pkg/contract imports the standard library only")
			case f.dir == "pkg/client" && !standard && imported != "posthorn/pkg/contract" &&
				!strings.HasPrefix(imported, "github.com/nats-io/nats.go"):
				deny("pkg/client imports pkg/contract and nats.go only, as strangers import it")
			case nats && under(f.dir, "pkg", "services", "schemas") &&
				!under(f.dir, "pkg/bus", "pkg/client", "pkg/embeddednats"):
				deny("only pkg/bus, pkg/client and pkg/embeddednats know NATS")
			}
		}
	}
}

func TestNoTestSkipsOrSleeps(t *testing.T) {
	for _, f := range goFiles(t) {
		if !f.test {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			selector, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			receiver, ok := selector.X.(*ast.Ident)
			if !ok {
				return true
			}
			switch name := receiver.Name + "." + selector.Sel.Name; {
			case name == "time.Sleep":
				t.Errorf("%s: a sleep is too long or too short: poll for what is awaited, or use testing/synctest",
					f.where(n))
			case slices.Contains([]string{"t", "b", "tb", "f"}, receiver.Name) &&
				slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, selector.Sel.Name), name == "testing.Short":
				t.Errorf("%s: a missing prerequisite must fail, not skip", f.where(n))
			}
			return true
		})
	}
}

// Releases are installed with `go install`, which refuses a module with replacements.
func TestTheRootModuleReplacesNothing(t *testing.T) {
	if regexp.MustCompile(`(?m)^\s*replace\b|^\s*\S+ (v\S+ )?=>`).Match(read(t, "go.mod")) {
		t.Error("go.mod has a replacement")
	}
}

func TestOneToolchainEverywhere(t *testing.T) {
	for _, file := range []string{
		"go.mod", "go.work", "Taskfile.yml", ".ci/run", "deployments/e2e/go.mod", "deployments/tools/go.mod",
		"deployments/tools/lint/go.mod",
	} {
		found := regexp.MustCompile(`go1\.\d+\.\d+`).FindAllString(string(read(t, file)), -1)
		if len(found) == 0 || slices.ContainsFunc(found, func(s string) bool { return s != toolchain }) {
			t.Errorf("%s names the toolchains %v, want %s", file, found, toolchain)
		}
	}
}

func TestEveryTaskSaysWhatItDoes(t *testing.T) {
	var taskfile struct {
		Tasks map[string]struct {
			Desc string `yaml:"desc"`
		} `yaml:"tasks"`
	}
	content := read(t, "Taskfile.yml")
	if err := yaml.Unmarshal(content, &taskfile); err != nil {
		t.Fatal(err)
	}
	for name, task := range taskfile.Tasks {
		if task.Desc == "" {
			t.Errorf("task %s has no desc", name)
		}
	}
	if bytes.Contains(content, []byte("@latest")) {
		t.Error("Taskfile.yml uses @latest: pin the version")
	}
}

// Nothing of the machine that a change was made on, and nothing left open, belongs into the tree.
func TestNoTracesOfAMachineOrOfUnfinishedWork(t *testing.T) {
	// Written in pieces, so that this file does not match itself.
	traces := regexp.MustCompile("(^|[\\s\"'(=:`])/wo" + `rk/|/fa` + `rm/|\.\./sha` + `red`)
	open := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME)\b`)
	for _, name := range files(t) {
		content := read(t, name)
		if !utf8.Valid(content) || len(content) > 4<<20 {
			continue // no text
		}
		for number, line := range bytes.Split(content, []byte("\n")) {
			if traces.Match(line) {
				t.Errorf("%s:%d: a path of somebody's machine: %.100s", name, number+1, line)
			}
			if path.Ext(name) == ".go" && open.Match(line) {
				t.Errorf("%s:%d: finished, or not there: %.100s", name, number+1, line)
			}
		}
	}
}

// goFile is one parsed Go file of the repository.
type goFile struct {
	path, dir       string // from the root, with slashes
	test, generated bool
	imports         []string
	syntax          *ast.File
	positions       *token.FileSet
}

func (f *goFile) where(n ast.Node) string {
	return fmt.Sprintf("%s:%d", f.path, f.positions.Position(n.Pos()).Line)
}

func goFiles(t *testing.T) []*goFile {
	t.Helper()
	var found []*goFile
	for _, name := range files(t) {
		if path.Ext(name) != ".go" {
			continue
		}
		f := &goFile{path: name, dir: path.Dir(name), positions: token.NewFileSet()}
		f.test = strings.HasSuffix(name, "_test.go")
		var err error
		f.syntax, err = parser.ParseFile(f.positions, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			continue
		}
		f.generated = ast.IsGenerated(f.syntax)
		for _, i := range f.syntax.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			f.imports = append(f.imports, imported)
		}
		found = append(found, f)
	}
	return found
}

// files lists the files of the repository, from the root and with slashes, without what .gitignore names.
func files(t *testing.T) []string {
	t.Helper()
	ignored := []string{".git", ".task", "build", "dist", "posthorn-data", "node_modules"}
	var found []string
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains(ignored, entry.Name()):
			return fs.SkipDir
		case entry.Type().IsRegular():
			found = append(found, filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// under tells whether dir is one of the parents or lies below one.
func under(dir string, parents ...string) bool {
	return slices.ContainsFunc(parents, func(parent string) bool {
		return dir == parent || strings.HasPrefix(dir, parent+"/")
	})
}
