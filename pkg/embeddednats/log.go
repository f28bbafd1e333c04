package embeddednats

import (
	"errors"
	"fmt"
	"log/slog"
)

// logger passes the server's messages on. Its notices are debug messages of the program: they tell how the server
// starts and stops. A fatal message does not end the process, as the server would have it: it is handed to start.
type logger struct {
	log   *slog.Logger
	fatal chan error
}

func (l *logger) Noticef(format string, v ...any) { l.log.Debug("nats: " + fmt.Sprintf(format, v...)) }
func (l *logger) Warnf(format string, v ...any)   { l.log.Warn("nats: " + fmt.Sprintf(format, v...)) }
func (l *logger) Errorf(format string, v ...any)  { l.log.Error("nats: " + fmt.Sprintf(format, v...)) }
func (l *logger) Debugf(string, ...any)           {}
func (l *logger) Tracef(string, ...any)           {}

func (l *logger) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.log.Error("nats: " + text)
	select {
	case l.fatal <- errors.New(text):
	default: // the first reason is the one that counts
	}
}
