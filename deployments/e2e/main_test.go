package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"posthorn/pkg/mailbox/mailboxtest"
)

// raced is the program with the race detector, which is what the tests run if they do not say otherwise.
var raced string

// binaries is where the programs of a test run are built.
var binaries string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if _, err := exec.LookPath("dovecot"); err != nil {
		return 0, errors.New("these tests need a real mail server: apt-get install dovecot-imapd dovecot-pop3d")
	}
	if binaries, err = os.MkdirTemp("", "posthorn-e2e"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(binaries)) }()
	if raced, err = build("posthorn-race", "../..", "./services/posthorn", "-race"); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// build builds a package of the module at dir and returns the program's path.
func build(name, dir, pkg string, flags ...string) (string, error) {
	path := filepath.Join(binaries, name)
	arguments := append(append([]string{"build"}, flags...), "-o", path, pkg)
	command := exec.Command("go", arguments...)
	command.Dir = dir
	if output, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %v: %w\n%s", arguments, err, output)
	}
	return path, nil
}

// released is the program as it is released, without the race detector: for what the detector would falsify.
var released = sync.OnceValues(func() (string, error) { return build("posthorn", "../..", "./services/posthorn") })

// dovecot starts a mail server of the test's own.
func dovecot(t *testing.T, options mailboxtest.DovecotOptions) *mailboxtest.Dovecot {
	t.Helper()
	return mailboxtest.StartDovecot(t, options)
}
