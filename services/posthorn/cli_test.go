package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"posthorn/pkg/source"
	"posthorn/services/allinone"
)

// posthorn runs a command line in this process.
func posthorn(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, complaints bytes.Buffer
	code = execute(ctx, args, &out, &complaints)
	return out.String(), complaints.String(), code
}

// parse parses a command line and returns its commands, without running one.
func parse(t *testing.T, args ...string) (*grammar, error) {
	t.Helper()
	var commands grammar
	parser, err := newParser(&commands, &bytes.Buffer{}, &bytes.Buffer{}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	_, err = parser.Parse(args)
	return &commands, err
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEveryFlagAndCommandIsExplainedAndEveryFlagHasAnEnvironmentName(t *testing.T) {
	var commands grammar
	parser, err := newParser(&commands, &bytes.Buffer{}, &bytes.Buffer{}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	err = kong.Visit(parser.Model, func(node kong.Visitable, next kong.Next) error {
		switch v := node.(type) {
		case *kong.Node:
			if v.Help == "" {
				t.Errorf("%s has no help", v.Path())
			}
		case *kong.Flag:
			if v.Help == "" {
				t.Errorf("--%s has no help", v.Name)
			}
			want := "POSTHORN_" + strings.ToUpper(strings.ReplaceAll(v.Name, "-", "_"))
			if v.Name != "help" && !slices.Equal(v.Envs, []string{want}) {
				t.Errorf("--%s is %v in the environment, want %s", v.Name, v.Envs, want)
			}
		}
		return next(nil)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRunWithoutFlagsIsTheDefaultConfiguration(t *testing.T) {
	commands, err := parse(t, "run")
	if err != nil {
		t.Fatal(err)
	}
	got := commands.Run.settings(&program{globals: &commands.globals})
	want := allinone.DefaultConfig()
	if filepath.Base(got.Data) != want.Data || got.KeyFile != filepath.Join(got.Data, "keys") {
		t.Errorf("data %s, keys %s", got.Data, got.KeyFile)
	}
	if got.HTTP != want.HTTP || got.NATS != want.NATS || got.NATSListen != want.NATSListen ||
		got.Network != want.Network || got.Timeout != want.Timeout || got.MaxStore != want.MaxStore ||
		!slices.Equal(got.Stages, want.Stages) || !slices.Equal(got.AllowedPorts, want.AllowedPorts) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestAsAServiceTheDataLiesInItsStateDirectory(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "/var/lib/posthorn:/var/lib/other")
	commands, err := parse(t, "status")
	if err != nil {
		t.Fatal(err)
	}
	if commands.Data != "/var/lib/posthorn" {
		t.Errorf("data lies in %s", commands.Data)
	}
}

func TestTheFileGivesWayToTheEnvironmentAndThatToTheCommandLine(t *testing.T) {
	file := write(t, "posthorn.yaml", `
stages: [fetcher, parser]
http: file:1
nats-listen: file:2
nats_monitor: http://file:3
max_store: 10GB
assume_durable: true
allowed_ports: [993, 995]
timeout: 90s
data: /from/file
`)
	t.Setenv("POSTHORN_CONFIG", file)
	t.Setenv("POSTHORN_HTTP", "environment:1")
	t.Setenv("POSTHORN_NATS_LISTEN", "environment:2")
	t.Setenv("POSTHORN_NOBODY_KNOWS_THIS", "ignored")
	commands, err := parse(t, "run", "--http", "flag:1")
	if err != nil {
		t.Fatal(err)
	}
	run := commands.Run
	if run.HTTP != "flag:1" || run.NATSListen != "environment:2" || run.NATSMonitor != "http://file:3" {
		t.Errorf("http %s, nats-listen %s, nats-monitor %s", run.HTTP, run.NATSListen, run.NATSMonitor)
	}
	if !slices.Equal(run.Stages, []string{"fetcher", "parser"}) || !slices.Equal(run.AllowedPorts, []int{993, 995}) ||
		run.MaxStore != 10*source.GB || !run.AssumeDurable || run.Timeout != 90*time.Second ||
		commands.Data != "/from/file" {
		t.Errorf("%+v %+v", run, commands.globals)
	}
}

func TestAConfigFileIsForEveryCommandButSaysNothingAboutItsOwnFlags(t *testing.T) {
	file := write(t, "posthorn.yaml", "data: /from/file\nprune: true\nstages: [parser]\n")
	sources := write(t, "sources.yaml", "sources: []\n")
	commands, err := parse(t, "sources", "apply", "--config", file, "-f", sources)
	if err != nil {
		t.Fatal(err)
	}
	if commands.Data != "/from/file" || commands.Sources.Apply.Prune {
		t.Errorf("data %s, prune %v", commands.Data, commands.Sources.Apply.Prune)
	}
}

func TestWhatIsWrongWithAConfigFileIsNamed(t *testing.T) {
	for name, test := range map[string]struct{ content, want string }{
		"an unknown key": {"htpp: 127.0.0.1:1\n", `has the unknown key "htpp"; there are: allowed-ports, `},
		"itself":         {"config: other.yaml\n", `has the unknown key "config"`},
		"a mapping":      {"http: {a: 1}\n", "http: it is a mapping"},
		"no value":       {"http:\n", "http: it has no value"},
		"no YAML":        {"http: [\n", "is no YAML"},
		"a wrong value":  {"timeout: soon\n", "timeout"},
		"a wrong stage":  {"stages: [sorter]\n", `there is no stage "sorter"`},
	} {
		_, complaint, code := posthorn(t, "run", "--config", write(t, "posthorn.yaml", test.content))
		if code != exitUsage || !strings.Contains(complaint, test.want) {
			t.Errorf("%s: exit code %d, %s", name, code, complaint)
		}
	}
	if _, complaint, code := posthorn(t, "run", "--config", "/nowhere.yaml"); code != exitUsage ||
		!strings.Contains(complaint, "cannot be read") {
		t.Errorf("no file: exit code %d, %s", code, complaint)
	}
}

func TestWrongUsageSaysWhatIsWrongAndWhereToLook(t *testing.T) {
	for line, want := range map[string]string{
		"frobnicate":                     "unexpected argument frobnicate",
		"run --foo":                      "unknown flag --foo",
		"run --stages sorter":            `there is no stage "sorter"`,
		"run --allowed-ports 993,0":      `"0" is no port`,
		"run --stages all,parser":        "all stands alone",
		"run --network-policy anything":  "private-ok",
		"run --max-store plenty":         "write it like 25MB",
		"sources":                        `expected one of "list"`,
		"sources apply":                  "missing flags: --file=FILE",
		"sources show":                   "<name>",
		"watch --since yesterday":        "--since takes a time",
		"dead-letters show not/a/key":    "key of a mail",
		"provision --replicas -1":        "--replicas",
		"demo --nats nats://elsewhere:1": "of its own",
	} {
		_, complaint, code := posthorn(t, strings.Fields(line)...)
		if code != exitUsage || !strings.Contains(complaint, want) || !strings.Contains(complaint, "--help`") {
			t.Errorf("%s: exit code %d: %s", line, code, complaint)
		}
	}
	help, _, code := posthorn(t)
	if code != exitUsage || !strings.Contains(help, "posthorn demo") {
		t.Errorf("without arguments: exit code %d: %s", code, help)
	}
}

func TestHelpTeaches(t *testing.T) {
	for line, want := range map[string][]string{
		"help sources apply":   {"Applying it twice changes nothing"},
		"--help":               {"posthorn run --sources sources.yaml", "Exit codes: 0 clean, 1 failed, 2 wrong usage"},
		"run --help":           {"posthorn run --stages parser", "POSTHORN_NATS_LISTEN", "Message store:"},
		"sources --help":       {"posthorn sources apply -f sources.yaml --dry-run"},
		"sources apply --help": {"checked before anything is changed"},
		"watch --help":         {"--since all --json"},
		"status --help":        {"--check"},
		"receipt --help":       {"Message-ID"},
	} {
		help, complaint, code := posthorn(t, strings.Fields(line)...)
		if code != exitOK || complaint != "" {
			t.Errorf("%s: exit code %d, %s", line, code, complaint)
		}
		for _, text := range want {
			if !strings.Contains(strings.Join(strings.Fields(help), " "), text) {
				t.Errorf("%s: %q is missing in\n%s", line, text, help)
			}
		}
	}
}

func TestWhenNothingIsRunningItSaysWhereItLookedAndHowToStart(t *testing.T) {
	dir := t.TempDir()
	_, complaint, code := posthorn(t, "sources", "list", "--data", dir)
	if code != exitFailed || !strings.Contains(complaint, filepath.Join(dir, "ready.json")) ||
		!strings.Contains(complaint, "posthorn run") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
	if _, complaint, code := posthorn(t, "status", "--check", "--data", dir); code != 2 || complaint == "" {
		t.Errorf("status --check: exit code %d: %s", code, complaint)
	}

	left := filepath.Join(dir, "ready.json")
	if err := os.WriteFile(left, []byte(`{"ready":true,"nats":"nats://posthorn:hunter2@127.0.0.1:1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, complaint, code = posthorn(t, "watch", "--data", dir)
	if code != exitFailed || !strings.Contains(complaint, "nobody answers at nats://127.0.0.1:1") ||
		strings.Contains(complaint, "hunter2") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
	if _, complaint, code = posthorn(t, "watch", "--nats", "nats://127.0.0.1:1", "--data", dir); code != exitFailed ||
		strings.Contains(complaint, "ready.json") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
	if err := os.WriteFile(left, []byte(`{"ready":true,"nats":""}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, complaint, _ = posthorn(t, "watch", "--data", dir); !strings.Contains(complaint, "--nats-listen") {
		t.Errorf("without a listener: %s", complaint)
	}
	doctor, _, code := posthorn(t, "doctor", "--data", filepath.Join(dir, "none"))
	if code != exitFailed || !strings.Contains(doctor, "✕ data directory") || !strings.Contains(doctor, "✕ running") {
		t.Errorf("doctor: exit code %d: %s", code, doctor)
	}
}

func TestVersionAndSchemasArePrinted(t *testing.T) {
	if out, _, code := posthorn(t, "version"); code != exitOK || !strings.HasPrefix(out, "posthorn ") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if out, _, code := posthorn(t, "version", "--json"); code != exitOK || !strings.Contains(out, `"version": "`) {
		t.Errorf("exit code %d: %s", code, out)
	}
	if out, _, code := posthorn(t, "schema"); code != exitOK || !strings.Contains(out, "posthorn.dead-letter.v1\n") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if out, _, code := posthorn(t, "schema", "posthorn.audit.v1"); code != exitOK || !strings.Contains(out, `"$schema"`) {
		t.Errorf("exit code %d: %s", code, out)
	}
	if _, complaint, code := posthorn(t, "schema", "nothing"); code != exitFailed ||
		!strings.Contains(complaint, "posthorn schema") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
}
