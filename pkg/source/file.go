package source

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/secret"
)

// Limits of a sources file and of a file that holds one password or certificate, in bytes.
const (
	mostFile   = 1 << 20
	mostSecret = 64 << 10
)

// File is a sources file that could be read. Whether its sources keep the rules is for [Apply] to say.
type File struct {
	Path      string
	Workflows []FileWorkflow
	Sources   []FileSource
}

// FileWorkflow is one workflow of a file.
type FileWorkflow struct {
	Workflow
	Line int
}

// FileSource is one source of a file, with its defaults filled in.
type FileSource struct {
	Source   Source
	Password secret.Secret
	// Line where the source begins, and the lines of its fields by name.
	Line  int
	Lines map[string]int
}

// Problem is one thing that is wrong with a sources file.
type Problem struct {
	// Line in the file, from 1; 0 when it is about no line.
	Line int `json:"line,omitempty"`
	// Source is the id of the source, or its number ("source 3") when it has none; "workflow sales" for a workflow.
	Source string `json:"source,omitempty"`
	Violation
}

// FileError holds everything that is wrong with a sources file: nothing of the file was applied.
type FileError struct {
	Path     string
	Problems []Problem
}

// Error has one line for each problem: file:line: source: field: message.
func (e *FileError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, problem := range e.Problems {
		text := e.Path
		if problem.Line > 0 {
			text += ":" + strconv.Itoa(problem.Line)
		}
		for _, part := range []string{problem.Source, problem.Field, problem.Message} {
			if part != "" {
				text += ": " + part
			}
		}
		lines[i] = text
	}
	return strings.Join(lines, "\n")
}

// LoadFile reads a sources file. env looks up environment variables, as os.LookupEnv does. Every text in the file may
// hold ${NAME}; $$ is a dollar sign. A password may be file:PATH: the content of that file without its last line break.
// Relative paths start at the directory of the sources file. The error is a [*FileError] with all problems at once;
// what could be read comes with it, for [Explain].
func LoadFile(path string, env func(string) (string, bool)) (File, error) {
	data, err := readSmall(path, mostFile)
	if err != nil {
		return File{}, &FileError{Path: path, Problems: []Problem{{Violation: Violation{
			Rule: RuleSyntax, Message: "The sources file cannot be read: " + reason(err) + ".",
		}}}}
	}
	l := &loader{path: path, env: env}
	l.document(data)
	if len(l.problems) > 0 {
		slices.SortStableFunc(l.problems, func(a, b Problem) int { return a.Line - b.Line })
		return l.file, &FileError{Path: path, Problems: l.problems}
	}
	return l.file, nil
}

type loader struct {
	path     string
	env      func(string) (string, bool)
	file     File
	problems []Problem
}

func (l *loader) add(line int, source, field, rule, format string, args ...any) {
	l.problems = append(l.problems, Problem{Line: line, Source: source, Violation: Violation{
		Field: field, Rule: rule, Message: fmt.Sprintf(format, args...),
	}})
}

func (l *loader) document(data []byte) {
	l.file.Path = l.path
	parsed, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		line, message := 0, "this is no YAML"
		if syntax, ok := errors.AsType[yaml.Error](err); ok { // its text quotes the file, passwords and all
			message = syntax.GetMessage()
			if token := syntax.GetToken(); token != nil && token.Position != nil {
				line = token.Position.Line
			}
		}
		l.add(line, "", "", RuleSyntax, "The file is not written as YAML: %s.", message)
		return
	}
	var bodies []ast.Node
	for _, doc := range parsed.Docs {
		if doc.Body != nil && doc.Body.Type() != ast.NullType && doc.Body.Type() != ast.CommentType {
			bodies = append(bodies, doc.Body)
		}
	}
	switch len(bodies) {
	case 0:
		l.add(0, "", "", RuleRequired, "The file is empty. Write `sources: []` if there shall be no source.")
	case 1:
		l.top(bodies[0])
	default:
		l.add(lineOf(bodies[1]), "", "", RuleSyntax, "The file holds more than one document. Write one only.")
	}
}

func (l *loader) top(body ast.Node) {
	m := l.mapping(body, "", "the file", []string{"workflows", "sources"})
	if m == nil {
		return
	}
	if _, ok := m.values["sources"]; !ok {
		l.add(0, "", "sources", RuleRequired, "The file names no sources. Write `sources: []` if there shall be none.")
	}
	seen := map[string]int{}
	l.each(m.values["workflows"], "workflow", func(number int, node ast.Node) { l.workflow(number, node, seen) })
	seen = map[string]int{}
	l.each(m.values["sources"], "source", func(number int, node ast.Node) { l.source(number, node, seen) })
}

func (l *loader) each(node ast.Node, what string, do func(number int, node ast.Node)) {
	switch list := node.(type) {
	case nil, *ast.NullNode:
	case *ast.SequenceNode:
		for i, item := range list.Values {
			do(i+1, item)
		}
	default:
		l.add(lineOf(node), "", what+"s", RuleSyntax, "Write a list here: each %s starts with a dash.", what)
	}
}

var workflowKeys = []string{"id", "name", "published"}

func (l *loader) workflow(number int, node ast.Node, seen map[string]int) {
	m := l.mapping(node, "workflow "+strconv.Itoa(number), "a workflow", workflowKeys)
	if m == nil {
		return
	}
	w := FileWorkflow{Workflow: Workflow{Published: true}, Line: m.line}
	l.identify(m, "workflow", seen)
	w.ID = m.text("id", "")
	w.Name = m.text("name", w.ID)
	m.boolean("published", &w.Published)
	l.file.Workflows = append(l.file.Workflows, w)
}

// sourceKeys are the keys of a source, in the order of the documentation.
var sourceKeys = []string{
	"id", "name", "description", "default_workflow", "type", "address", "server", "port", "username", "password", "oauth2",
	"ssl", "delete_fetched", "after_fetch", "replies_only", "archive_mailbox", "max_size", "poll_interval", "ca_file",
	"reply_evidence", "import_from", "paused",
}

func (l *loader) source(number int, node ast.Node, seen map[string]int) {
	m := l.mapping(node, "source "+strconv.Itoa(number), "a source", sourceKeys)
	if m == nil {
		return
	}
	l.identify(m, "source", seen)
	read := FileSource{Source: New(), Line: m.line, Lines: m.lines}
	s := &read.Source
	s.ManagedBy = ByFile
	s.ID = m.text("id", "")
	s.Name = m.text("name", "")
	s.Description = m.text("description", "")
	s.DefaultWorkflow = m.text("default_workflow", "")
	s.Type = mailbox.Protocol(m.text("type", string(s.Type)))
	s.Address = m.text("address", "")
	s.Server = m.text("server", "")
	s.Port = m.number("port")
	s.Username = m.text("username", "")
	if oauth2, ok := m.values["oauth2"]; ok {
		l.add(lineOf(oauth2), m.name, "oauth2", RuleOAuth,
			"Signing in with OAuth2 is not available yet. Use a password or an app password for now.")
	}
	read.Password = m.password()
	m.boolean("ssl", &s.SSL)
	m.afterFetch(s)
	m.boolean("replies_only", &s.RepliesOnly)
	s.ArchiveMailbox = m.text("archive_mailbox", s.ArchiveMailbox)
	parse(m, "max_size", ParseSize, &s.MaxSize)
	parse(m, "poll_interval", ParseDuration, &s.PollInterval)
	s.CA = m.content("ca_file", m.text("ca_file", ""))
	s.ReplyEvidence = Evidence(m.text("reply_evidence", string(s.ReplyEvidence)))
	s.ImportFrom = m.text("import_from", s.ImportFrom)
	m.boolean("paused", &s.Paused)
	l.file.Sources = append(l.file.Sources, read)
}

// identify asks for an id of its own and uses it to name what is wrong with the rest.
func (l *loader) identify(m *mapping, what string, seen map[string]int) {
	id := m.text("id", "")
	if id == "" {
		if _, wrong := m.lines["id"]; !wrong || !m.failed["id"] {
			l.add(m.line, m.name, "id", RuleRequired, "Give the %s an id: 1 to 64 characters of a-z, 0-9, _ and -.", what)
		}
		return
	}
	m.name = named(what, short(id))
	if first, ok := seen[id]; ok {
		l.add(m.lines["id"], m.name, "id", RuleUnique, "The id %q is used in line %d already.", short(id), first)
		return
	}
	seen[id] = m.lines["id"]
}

// named is how a source or a workflow is named in problems; a source by its id alone.
func named(what, id string) string {
	if strings.HasPrefix(what, "workflow") {
		return "workflow " + id
	}
	return id
}

// mapping is one YAML mapping whose keys are known.
type mapping struct {
	loader *loader
	name   string
	line   int
	values map[string]ast.Node
	lines  map[string]int
	failed map[string]bool // told about already
}

// mapping reads the keys of a node; nil when it is no mapping. name is the source it is about, label what it is in a
// sentence.
func (l *loader) mapping(node ast.Node, name, label string, known []string) *mapping {
	var pairs []*ast.MappingValueNode
	switch node := node.(type) {
	case *ast.MappingNode:
		pairs = node.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{node}
	default:
		l.add(lineOf(node), name, "", RuleSyntax, "Write %s as `key: value` lines.", label)
		return nil
	}
	m := &mapping{
		loader: l, name: name, line: lineOf(node),
		values: map[string]ast.Node{}, lines: map[string]int{}, failed: map[string]bool{},
	}
	if len(pairs) > 0 {
		m.line = lineOf(pairs[0].Key)
	}
	for _, pair := range pairs { // the id names everything that is wrong, also what stands before it
		if key, _ := scalar(pair.Key); key == "id" && name != "" {
			if id, _ := scalar(pair.Value); contract.ValidToken(id) {
				m.name = named(name, id)
			}
		}
	}
	for _, pair := range pairs {
		m.pair(pair, label, known)
	}
	return m
}

func (m *mapping) pair(pair *ast.MappingValueNode, label string, known []string) {
	line := lineOf(pair.Key)
	key, ok := scalar(pair.Key)
	if !ok {
		m.loader.add(line, m.name, "", RuleSyntax, "The keys of %s are plain words.", label)
		return
	}
	if !slices.Contains(known, key) {
		hint := "The keys of " + label + " are: " + strings.Join(known, ", ") + "."
		if near := nearest(key, known); near != "" {
			hint = "Did you mean " + near + "?"
		}
		m.loader.add(line, m.name, short(key), RuleUnknown, "There is no such key. %s", hint)
		return
	}
	if first, twice := m.lines[key]; twice {
		m.loader.add(line, m.name, key, RuleUnique, "The key stands in line %d already.", first)
		return
	}
	m.lines[key] = line
	m.values[key] = pair.Value
}

func (m *mapping) wrong(key, rule, format string, args ...any) {
	m.failed[key] = true
	m.loader.add(m.lines[key], m.name, key, rule, format, args...)
}

// text returns a scalar with its variables filled in; def when the key is not there. Asked twice, it complains once.
func (m *mapping) text(key, def string) string {
	raw, ok := m.raw(key)
	if !ok {
		return def
	}
	return m.expand(key, raw)
}

// raw returns a scalar as it is written; false when the key is not there or is no scalar.
func (m *mapping) raw(key string) (string, bool) {
	node, ok := m.values[key]
	if !ok || m.failed[key] {
		return "", false
	}
	text, ok := scalar(node)
	if !ok {
		m.wrong(key, RuleSyntax, "Write a single value here: no list, no mapping, no anchor.")
	}
	return text, ok
}

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// expand fills in ${NAME} and turns $$ into a dollar sign; any other dollar sign stays.
func (m *mapping) expand(key, text string) string {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "$")
		out.WriteString(before)
		switch {
		case !found:
			return out.String()
		case strings.HasPrefix(rest, "$"):
			out.WriteByte('$')
			text = rest[1:]
		case strings.HasPrefix(rest, "{"):
			name, after, closed := strings.Cut(rest[1:], "}")
			if !closed || !variable.MatchString(name) {
				m.wrong(key, RuleSyntax, "A variable is written ${NAME}; for a dollar sign before a brace write $${.")
				return ""
			}
			value, ok := m.loader.env(name)
			if !ok {
				m.wrong(key, RuleRequired, "The environment variable %s is not set.", name)
				return ""
			}
			out.WriteString(value)
			text = after
		default:
			out.WriteByte('$')
			text = rest
		}
	}
}

func (m *mapping) boolean(key string, into *bool) {
	text := m.text(key, "")
	switch {
	case m.absent(key):
	case text == "true" || text == "false":
		*into = text == "true"
	default:
		m.wrong(key, RuleSyntax, "Write true or false.")
	}
}

// absent tells whether there is nothing (more) to say about a key.
func (m *mapping) absent(key string) bool {
	_, ok := m.values[key]
	return !ok || m.failed[key]
}

func (m *mapping) number(key string) int {
	text := m.text(key, "")
	if m.absent(key) || text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 65535 {
		m.wrong(key, RuleSyntax, "%q is no port: write a number such as 993.", short(text))
		return 0
	}
	return n
}

// parse reads a value that has a notation of its own.
func parse[T any](m *mapping, key string, read func(string) (T, error), into *T) {
	text := m.text(key, "")
	if m.absent(key) {
		return
	}
	value, err := read(text)
	if err != nil {
		m.wrong(key, RuleSyntax, "%s.", err)
		return
	}
	*into = value
}

// afterFetch reads after_fetch and its short form delete_fetched.
func (m *mapping) afterFetch(s *Source) {
	remove := false
	m.boolean("delete_fetched", &remove)
	s.AfterFetch = contract.Disposition(m.text("after_fetch", string(s.AfterFetch)))
	_, both := m.values["after_fetch"]
	switch {
	case remove && both && s.AfterFetch != contract.Delete && !m.failed["after_fetch"]:
		m.wrong("delete_fetched", RuleContradicts,
			"delete_fetched is true, but after_fetch is %s. Keep one of them.", short(string(s.AfterFetch)))
	case remove:
		s.AfterFetch = contract.Delete
	case !m.absent("delete_fetched") && both && s.AfterFetch == contract.Delete:
		m.wrong("delete_fetched", RuleContradicts, "delete_fetched is false, but after_fetch is delete. Keep one of them.")
	}
}

// password is the value itself, or the content of the file it names. Whether a value is file:… is decided by what is
// written in the sources file, so a password from a variable may begin with anything.
func (m *mapping) password() secret.Secret {
	raw, ok := m.raw("password")
	if !ok {
		return ""
	}
	path, isFile := strings.CutPrefix(raw, "file:")
	if !isFile {
		return secret.Secret(m.expand("password", raw))
	}
	path = m.expand("password", path)
	if m.failed["password"] {
		return ""
	}
	text := m.content("password", path)
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if text == "" && !m.failed["password"] {
		m.wrong("password", RuleRequired, "The file %s is empty.", short(path))
	}
	return secret.Secret(text)
}

// content reads a file that a key names; no name, no content.
func (m *mapping) content(key, path string) string {
	if path == "" || m.failed[key] {
		return ""
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(m.loader.path), path)
	}
	data, err := readSmall(path, mostSecret)
	if err != nil {
		m.wrong(key, RuleRequired, "The file %s cannot be read: %s.", short(path), reason(err))
		return ""
	}
	return string(data)
}

// scalar is the text of a YAML value as it is written, whatever type YAML gives it: a password of digits keeps its
// leading zeros. False for everything that is no single value.
func scalar(node ast.Node) (string, bool) {
	switch node := node.(type) {
	case nil, *ast.NullNode:
		return "", true
	case *ast.StringNode:
		return node.Value, true
	case *ast.LiteralNode:
		return node.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return node.GetToken().Value, true
	}
	return "", false
}

func lineOf(node ast.Node) int {
	if node == nil {
		return 0
	}
	if token := node.GetToken(); token != nil && token.Position != nil {
		return token.Position.Line
	}
	return 0
}

// nearest is the known word that was probably meant: at most two letters away, and not all of them; "" for none.
func nearest(word string, known []string) string {
	best, least := "", min(3, len(word))
	for _, candidate := range known {
		if strings.EqualFold(candidate, word) {
			return candidate
		}
		if d := distance(word, candidate); d < least {
			best, least = candidate, d
		}
	}
	return best
}

// distance counts the letters to insert, delete or replace between two short words (Levenshtein).
func distance(a, b string) int {
	if max(len(a), len(b)) > 40 {
		return 40
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// short cuts what is quoted from a file to one short line.
func short(text string) string {
	const most = 300
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

// readSmall reads a file of at most most bytes.
func readSmall(path string, most int64) ([]byte, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(file, most+1))
	if err == nil && int64(len(data)) > most {
		return nil, fmt.Errorf("it is larger than %s", Size(most))
	}
	return data, err
}

// reason strips operation and path from an error of the file system: the sentence around it names them.
func reason(err error) string {
	if path, ok := errors.AsType[*os.PathError](err); ok {
		return path.Err.Error()
	}
	return err.Error()
}
