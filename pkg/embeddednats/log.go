package embeddednats

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// logger passes the server's messages on. Its notices are debug messages of the program: they tell how the server
// starts and stops. A fatal message does not end the process, as the server would have it: it is handed to start.
type logger struct {
	log   *slog.Logger
	fatal chan error
}

func (l *logger) Noticef(format string, v ...any) {
	l.log.Debug("nats", "message", fmt.Sprintf(format, v...))
}
func (l *logger) Errorf(format string, v ...any) {
	l.log.Error("nats", "message", fmt.Sprintf(format, v...))
}
func (l *logger) Debugf(string, ...any) {}
func (l *logger) Tracef(string, ...any) {}

func (l *logger) Warnf(format string, v ...any) {
	if strings.HasPrefix(format, "Plaintext passwords") {
		return // ours are random, and known to this process and its data directory alone
	}
	l.log.Warn("nats", "message", fmt.Sprintf(format, v...))
}

func (l *logger) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.log.Error("nats", "message", text)
	select {
	case l.fatal <- errors.New(text):
	default: // the first reason is the one that counts
	}
}
