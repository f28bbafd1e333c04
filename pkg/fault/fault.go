// Package fault is how Posthorn says what went wrong: an error has a code for programs, parameters, and a text for
// people that comes from one catalogue (catalogue.en.yaml; more languages stand beside it). Whether an error is
// temporary or permanent is decided where it is born: it belongs to the code.
//
// The cause of an error goes to the log only through [Error.LogValue], shortened and free of line breaks; texts for
// people are made of the code and its parameters alone. Never put a secret or the content of a mail into a parameter.
package fault

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"
)

// Code names one kind of error, `class.detail`. Codes are API; their texts are free to improve.
type Code string

// Class is the part of a code before the dot: policy, dns, tcp, tls, auth, limit, mailbox, archive, protocol, mail or
// store. It decides how long to wait before the next try.
func (c Code) Class() string {
	class, _, _ := strings.Cut(string(c), ".")
	return class
}

// Params fill the placeholders of a text, by name.
type Params map[string]string

// Error is an error with a code. Create it with [New].
type Error struct {
	Code   Code
	Params Params
	// RetryAfter is how long the other side asked us to wait; 0 when it did not say.
	RetryAfter time.Duration

	cause error
}

// New makes an error of a code. The cause may be nil.
func New(code Code, cause error, params Params) *Error {
	return &Error{Code: code, Params: params, cause: cause}
}

// WithRetryAfter sets how long the other side asked us to wait.
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

// Error is the code and the headline of the catalogue, in English. It never holds the text of the cause.
func (e *Error) Error() string {
	return string(e.Code) + ": " + e.Text("en").Headline
}

// OrNil is e as an error, a nil *Error as a nil error.
func (e *Error) OrNil() error {
	if e == nil {
		return nil
	}
	return e
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// Is makes errors.Is(err, fault.New(code, nil, nil)) compare codes.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other.Code == e.Code
}

// Temporary tells whether trying again can help. It belongs to the code: see the catalogue.
func (e *Error) Temporary() bool { return !catalogue["en"][e.Code].Permanent }

// LogValue is the code, the parameters and the cause, the last cut to 300 characters.
func (e *Error) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("code", string(e.Code))}
	for _, name := range slices.Sorted(maps.Keys(e.Params)) {
		attrs = append(attrs, slog.String(name, Quote(e.Params[name])))
	}
	if e.cause != nil {
		attrs = append(attrs, slog.String("cause", Quote(e.cause.Error())))
	}
	return slog.GroupValue(attrs...)
}

// As finds the Error in err's chain. An error that has none is wrapped as store.unknown_error, which is temporary: an
// error of unknown kind is tried again, never given up on. As(nil) is nil.
func As(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return New(StoreUnknown, err, nil)
}

// CodeOf is the code of err, "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return As(err).Code
}

// Permanent tells whether err can never be cured by trying again.
func Permanent(err error) bool { return err != nil && !As(err).Temporary() }

// Quote makes the words of a foreign server fit to be shown: one line, at most 300 characters, printable.
func Quote(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.TrimSpace(s)
	if runes := []rune(s); len(runes) > most {
		s = string(runes[:most]) + "…"
	}
	return s
}

// Text is what a person reads about an error: what happened, what Posthorn does now, and what the person can do.
type Text struct {
	Headline string `json:"headline" yaml:"headline"`
	Now      string `json:"now" yaml:"now"`
	You      string `json:"you" yaml:"you"`
}

// Text fills the catalogue's text of the error's code in a language. A language or code without a text falls back to
// English and then to the code itself.
func (e *Error) Text(language string) Text {
	entry, ok := catalogue[language][e.Code]
	if !ok {
		entry, ok = catalogue["en"][e.Code]
	}
	if !ok {
		return Text{Headline: string(e.Code)}
	}
	return Text{
		Headline: fill(entry.Headline, e.Params),
		Now:      fill(entry.Now, e.Params),
		You:      fill(entry.You, e.Params),
	}
}

// fill replaces {name} by the parameter of that name.
func fill(text string, params Params) string {
	for name, value := range params {
		text = strings.ReplaceAll(text, "{"+name+"}", Quote(value))
	}
	return text
}
