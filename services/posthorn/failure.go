package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"posthorn/pkg/fault"
	"posthorn/pkg/source"
)

// complain tells a person what went wrong, and returns the exit code.
func complain(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	if usage, ok := errors.AsType[usageError](err); ok {
		return complainUsage(w, usage)
	}
	_, _ = io.WriteString(w, explain(err)) // nobody reads it: the exit code tells
	return exitFailed
}

// explain is what a person reads about an error: what happened, what Posthorn does now, what the person can do.
func explain(err error) string {
	if several, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // only the outermost is taken apart
		var b strings.Builder
		for _, err := range several.Unwrap() {
			if err != nil {
				b.WriteString(explain(err))
			}
		}
		return b.String()
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if file, ok := errors.AsType[*source.FileError](err); ok {
		line("posthorn: nothing was applied; the sources file has %s:", count(len(file.Problems), "problem", "problems"))
		for problem := range strings.SplitSeq(file.Error(), "\n") {
			line("  %s", problem)
		}
		return b.String()
	}
	if list, ok := errors.AsType[*source.InvalidError](err); ok {
		line("posthorn: %s cannot be saved as it is; nothing was changed:", list.What)
		for _, violation := range list.Violations {
			line("  %s: %s", violation.Field, violation.Message)
		}
		return b.String()
	}
	f, ok := errors.AsType[*fault.Error](err)
	switch {
	case ok:
		text := f.Text("en")
		before, _, _ := strings.Cut(err.Error(), f.Error()) // what the fault is about
		line("posthorn: %s%s (%s)", before, text.Headline, f.Code)
		if text.Now != "" {
			line("  now: %s", text.Now)
		}
		if text.You != "" {
			line("  you: %s", text.You)
		}
		if cause := f.Unwrap(); cause != nil && f.Code.Class() == "store" {
			line("  cause: %s", fault.Quote(cause.Error()))
		}
	case errors.Is(err, context.Canceled):
		line("posthorn: stopped before it was done")
	default:
		line("posthorn: %s", err)
	}
	return b.String()
}
