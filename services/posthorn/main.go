// The program posthorn: it runs the stages, and asks a running one what it knows. One file per command; README.md shows
// them in use.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		stop()
		<-signals // what does not end by itself ends now
		os.Exit(exitFailed)
	}()
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// program is what every command works with.
type program struct {
	ctx      context.Context //nolint:containedctx // lives as long as the command
	globals  *globals
	out, err io.Writer
	log      *slog.Logger
	now      func() time.Time
	zone     *time.Location // of times shown to people; JSON is always UTC
	user     string         // who does it, for the audit
}

// exitCode ends a command that has said everything already.
type exitCode int

// Error is for the log only.
func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// usageError is a mistake on the command line that only the command itself can see.
type usageError struct{ text string }

// Error says what is wrong.
func (e usageError) Error() string { return e.text }

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var commands grammar
	exited := -1
	parser, err := newParser(&commands, stdout, stderr, func(code int) {
		if exited < 0 {
			exited = code
		}
	})
	if err != nil {
		return complain(stderr, err)
	}
	if len(args) > 0 && args[0] == "help" { // what a newcomer types
		args = append(slices.Clone(args[1:]), "--help")
	}
	if len(args) == 0 {
		_, _ = parser.Parse([]string{"--help"}) // it prints; what is missing beside it is known
		return exitUsage
	}
	parsed, err := parser.Parse(args)
	if exited >= 0 { // --help has been printed
		return exited
	}
	if err != nil {
		return complainUsage(stderr, err)
	}
	p := &program{
		ctx: ctx, globals: &commands.globals, out: stdout, err: stderr, now: time.Now, zone: time.Local, user: whoami(),
		log: newLogger(stderr, commands.globals, parsed.Command()),
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	return complain(stderr, parsed.Run(p, p.log, &commands.globals))
}

// newLogger logs to w. Commands that run stages say what they do; the others only what is wrong.
func newLogger(w io.Writer, g globals, command string) *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.LevelWarn}
	if command == "run" || command == "demo" {
		options.Level = slog.LevelInfo
	}
	if g.LogLevel != "" {
		var level slog.Level
		if level.UnmarshalText([]byte(g.LogLevel)) == nil { // the grammar knows the levels
			options.Level = level
		}
	}
	if g.Log == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// complainUsage tells what is wrong with a command line.
func complainUsage(w io.Writer, err error) int {
	help := "posthorn --help"
	if parse, ok := errors.AsType[*kong.ParseError](err); ok && parse.Context != nil {
		if command := parse.Context.Selected(); command != nil {
			help = "posthorn " + command.Path() + " --help"
		}
	}
	_, _ = fmt.Fprintf(w, "posthorn: %s\nSee `%s`.\n", err, help) // nobody reads it: the exit code tells
	return exitUsage
}
