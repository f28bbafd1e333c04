package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"posthorn/pkg/source"
)

var (
	fence   = regexp.MustCompile("(?s)\n *```([a-z]*)\n(.*?)\n *```")
	command = regexp.MustCompile(`^ *(?:[A-Z_]+=\S+ )?posthorn( .*)?$`)
)

// blocks are the code blocks of a file in the root, of one language.
func blocks(t *testing.T, name, language string) []string {
	t.Helper()
	content, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, match := range fence.FindAllStringSubmatch(string(content), -1) {
		if match[1] == language {
			found = append(found, match[2])
		}
	}
	return found
}

func TestEveryCommandOfTheReadmeExists(t *testing.T) {
	t.Setenv("SALES_PASSWORD", "x")
	seen := 0
	for _, block := range blocks(t, "README.md", "") {
		for line := range strings.Lines(block) {
			match := command.FindStringSubmatch(strings.TrimRight(line, "\n"))
			if match == nil {
				continue
			}
			args, _, _ := strings.Cut(strings.TrimSpace(match[1]), "   ") // what follows explains it
			seen++
			var commands grammar
			parser, err := newParser(&commands, &bytes.Buffer{}, &bytes.Buffer{}, func(int) {})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(strings.Fields(args)); err != nil && args != "--help" {
				t.Errorf("%s: %v", args, err)
			}
		}
	}
	if seen < 10 {
		t.Errorf("%d commands were found", seen)
	}
}

func TestTheSourcesFileOfTheReadmeIsOne(t *testing.T) {
	files := blocks(t, "README.md", "yaml")
	if len(files) != 1 {
		t.Fatalf("%d files", len(files))
	}
	read, err := source.LoadFile(write(t, "sources.yaml", files[0]), func(string) (string, bool) { return "secret", true })
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range read.Sources {
		rules := source.Rules{Workflows: []source.Workflow{read.Workflows[0].Workflow}, Password: s.Password}
		if violations := source.Validate(s.Source, rules); violations != nil {
			t.Errorf("%+v", violations)
		}
	}
}
