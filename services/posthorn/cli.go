package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"
)

// globals are the flags of every command.
type globals struct {
	NATS     string     `name:"nats" placeholder:"URL" group:"where" help:"${help_nats}"`
	Data     string     `default:"${data}" placeholder:"DIR" type:"path" group:"where" help:"${help_data}"`
	KeyFile  string     `placeholder:"FILE" type:"path" group:"where" help:"${help_key_file}"`
	Config   configFile `placeholder:"FILE" type:"path" group:"where" help:"${help_config}"`
	Log      string     `default:"text" enum:"text,json" group:"log" help:"${help_log}"`
	LogLevel string     `default:"" enum:",debug,info,warn,error" placeholder:"LEVEL" group:"log" help:"${help_log_level}"`
}

// keyFile is where the keys are.
func (g *globals) keyFile() string {
	if g.KeyFile != "" {
		return g.KeyFile
	}
	return filepath.Join(g.Data, "keys")
}

// grammar is the command line.
type grammar struct {
	globals `embed:""`

	Run         runCmd         `cmd:"" group:"serve" help:"Take mail in: run all stages, or some of them."`
	Demo        demoCmd        `cmd:"" group:"serve" help:"${help_demo}"`
	Sources     sourcesCmd     `cmd:"" group:"use" help:"${help_cmd_sources}"`
	Watch       watchCmd       `cmd:"" group:"use" help:"Show requests and replies as they come."`
	Status      statusCmd      `cmd:"" group:"see" help:"Show how every source, every stage and the store are."`
	Receipt     receiptCmd     `cmd:"" group:"see" help:"Show what happened to one mail, step by step."`
	DeadLetters deadLettersCmd `cmd:"" group:"see" help:"See the mails that a stage gave up on."`
	Doctor      doctorCmd      `cmd:"" group:"see" help:"${help_doctor}"`
	Provision   provisionCmd   `cmd:"" group:"keep" help:"${help_provision}"`
	RotateKeys  rotateKeysCmd  `cmd:"" group:"keep" help:"Make a new key and seal every stored password with it."`
	Schema      schemaCmd      `cmd:"" group:"keep" help:"${help_schema}"`
	Version     versionCmd     `cmd:"" group:"keep" help:"Print the version of this program."`
}

const description = `Posthorn takes mail out of IMAP and POP3 mailboxes, makes exactly one contact request or reply ` +
	`of every mail, publishes it on NATS, and only then moves or deletes the mail on its server.

  posthorn demo                          see it at work, with built-in mail servers
  posthorn run --sources sources.yaml    take in mail
  posthorn status                        see how every source is
  posthorn watch                         see what comes in

Every flag can also be given in the environment: --nats-listen as POSTHORN_NATS_LISTEN. ` +
	`Exit codes: 0 clean, 1 failed, 2 wrong usage.`

// newParser makes the parser of the command line. exit is called when help was printed.
func newParser(commands *grammar, stdout, stderr io.Writer, exit func(int)) (*kong.Kong, error) {
	return kong.New(commands,
		kong.Name("posthorn"),
		kong.Description(description),
		kong.Writers(stdout, stderr),
		kong.Exit(exit),
		kong.DefaultEnvars("POSTHORN"),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, FlagsLast: true, WrapUpperBound: 120}),
		helpTexts(defaultData()),
		kong.ExplicitGroups([]kong.Group{
			{Key: "serve", Title: "Run it:"},
			{Key: "use", Title: "Use it:"},
			{Key: "see", Title: "See what happens:"},
			{Key: "keep", Title: "Keep it running:"},
			{Key: "what", Title: "What to run:"},
			{Key: "mail", Title: "Mail servers:"},
			{Key: "listen", Title: "Addresses:"},
			{Key: "store", Title: "Message store:"},
			{Key: "where", Title: "Where it is (all commands):"},
			{Key: "log", Title: "Logs (all commands):"},
		}),
	)
}

// defaultData is the data directory of a service under systemd, else one in the working directory.
func defaultData() string {
	if state := os.Getenv("STATE_DIRECTORY"); state != "" {
		first, _, _ := strings.Cut(state, ":")
		return first
	}
	return "posthorn-data"
}
