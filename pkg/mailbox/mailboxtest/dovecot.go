//go:build unix

package mailboxtest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"posthorn/pkg/mailbox"
)

// DovecotOptions set a real Dovecot 2.3 up. The zero value is a server on free ports of 127.0.0.1.
type DovecotOptions struct {
	// Host is the loopback address to listen on; default 127.0.0.1.
	Host string
	// StandardPorts listens on 143, 993, 110 and 995 of Host instead of free ports; give each test a Host of its own.
	StandardPorts bool
	// Users and their passwords; default "user" with "secret".
	Users map[string]string
	// Prefix of the personal namespace, such as "INBOX.".
	Prefix string
	// MaxConnections is mail_max_userip_connections; 0 is Dovecot's default, 10.
	MaxConnections int
	// Mailboxes that exist beside the Inbox, with a special use such as `\Sent` or none; nil is Sent, Drafts and Trash.
	Mailboxes map[string]string
	// Plugins are added to mail_plugins, IMAPPlugins to those of IMAP.
	Plugins     []string
	IMAPPlugins []string
	// Extra is added at the end of the configuration.
	Extra string
}

// Dovecot is a running Dovecot with mail in Maildirs.
type Dovecot struct {
	options DovecotOptions
	dir     string
	ca      *CA
	ports   map[string]int
	unique  atomic.Int64
}

// StartDovecot starts a Dovecot of its own, with everything in a directory of the test, and stops it with the test. It
// needs root, as Dovecot does.
func StartDovecot(t TB, options DovecotOptions) *Dovecot {
	t.Helper()
	binary, err := exec.LookPath("dovecot")
	if err != nil {
		t.Fatalf("dovecot is not installed: apt-get install dovecot-imapd dovecot-pop3d")
	}
	if os.Geteuid() != 0 {
		t.Fatalf("dovecot can be started by root only")
	}
	if options.Host == "" {
		options.Host = "127.0.0.1"
	}
	if options.Users == nil {
		options.Users = map[string]string{"user": "secret"}
	}
	if options.Mailboxes == nil {
		options.Mailboxes = map[string]string{"Sent": `\Sent`, "Drafts": `\Drafts`, "Trash": `\Trash`}
	}
	// Not t.TempDir: the paths of sockets are short, and other users must be able to enter.
	dir, err := os.MkdirTemp("", "dovecot")
	if err != nil {
		t.Fatalf("%v", err)
	}
	d := &Dovecot{options: options, dir: dir}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a temporary directory
	if err := d.prepare(); err != nil {
		t.Fatalf("dovecot: %v", err)
	}
	//nolint:gosec // a program found on PATH with a file of ours
	command := exec.CommandContext(context.Background(), binary, "-F", "-c", filepath.Join(dir, "dovecot.conf"))
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	// A group of its own: its helpers end with it, whatever happens.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		t.Fatalf("dovecot: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = command.Wait() // it is told to end below
	}()
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
		}
		_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
		<-ended
	})
	if err := d.ready(ended); err != nil {
		log, readErr := os.ReadFile(filepath.Join(dir, "log"))
		t.Fatalf("dovecot does not answer: %v\n%s%s", err, output.Bytes(), append(log, fmt.Sprint(readErr)...))
	}
	return d
}

func (d *Dovecot) prepare() error {
	if err := os.Chmod(d.dir, 0o755); err != nil { //nolint:gosec // Dovecot's users must enter
		return err
	}
	var err error
	if d.ca, err = NewCA(); err != nil {
		return err
	}
	cert, key, err := d.ca.IssuePEM(time.Now().Add(90*24*time.Hour), d.options.Host, "localhost", "127.0.0.1")
	if err != nil {
		return err
	}
	d.ports = map[string]int{"imap": 143, "imaps": 993, "pop3": 110, "pop3s": 995}
	if !d.options.StandardPorts {
		if err := d.freePorts(); err != nil {
			return err
		}
	}
	var passwd strings.Builder
	for user, password := range d.options.Users {
		fmt.Fprintf(&passwd, "%s:{PLAIN}%s::::::\n", user, password)
		if err := d.makeMaildir(d.Maildir(user, "INBOX")); err != nil {
			return err
		}
	}
	for name, content := range map[string][]byte{
		"cert.pem": cert, "key.pem": key, "passwd": []byte(passwd.String()), "dovecot.conf": []byte(d.config()),
	} {
		//nolint:gosec // Dovecot's own user reads them; the secrets are those of a test
		if err := os.WriteFile(filepath.Join(d.dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// freePorts asks the system for ports. Between closing and Dovecot's opening another program might take one: it would
// be noticed, as Dovecot would not start.
func (d *Dovecot) freePorts() error {
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			_ = l.Close() // so that Dovecot can have it
		}
	}()
	for name := range d.ports {
		var config net.ListenConfig
		l, err := config.Listen(context.Background(), "tcp", net.JoinHostPort(d.options.Host, "0"))
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			return err
		}
		if d.ports[name], err = strconv.Atoi(port); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dovecot) config() string {
	var boxes strings.Builder
	for name, use := range d.options.Mailboxes {
		fmt.Fprintf(&boxes, "  mailbox %q {\n    auto = create\n", name)
		if use != "" {
			fmt.Fprintf(&boxes, "    special_use = %s\n", use)
		}
		boxes.WriteString("  }\n")
	}
	limit := ""
	if d.options.MaxConnections > 0 {
		limit = fmt.Sprintf("mail_max_userip_connections = %d\n", d.options.MaxConnections)
	}
	separator := "/"
	if strings.HasSuffix(d.options.Prefix, ".") {
		separator = "."
	}
	return fmt.Sprintf(`base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[1]s/log
protocols = imap pop3
listen = %[2]s
default_internal_user = dovecot
default_internal_group = dovecot
default_login_user = dovenull
disable_plaintext_auth = no
auth_failure_delay = 0
first_valid_uid = 1
first_valid_gid = 1
mail_uid = mail
mail_gid = mail
mail_location = maildir:%[1]s/mail/%%n
mail_fsync = never
mail_plugins = %[9]s
ssl = yes
ssl_cert = <%[1]s/cert.pem
ssl_key = <%[1]s/key.pem
passdb {
  driver = passwd-file
  args = %[1]s/passwd
}
userdb {
  driver = static
  args = uid=mail gid=mail home=%[1]s/mail/%%n
}
namespace inbox {
  inbox = yes
  prefix = %[3]s
  separator = %[4]s
%[5]s}
service imap-login {
  chroot =
  inet_listener imap {
    port = %[10]d
  }
  inet_listener imaps {
    port = %[11]d
    ssl = yes
  }
}
service pop3-login {
  chroot =
  inet_listener pop3 {
    port = %[12]d
  }
  inet_listener pop3s {
    port = %[13]d
    ssl = yes
  }
}
service anvil {
  chroot =
}
service stats {
  chroot =
}
protocol imap {
  mail_plugins = $mail_plugins %[8]s
  %[6]s
}
protocol pop3 {
  %[6]s
}
%[7]s
`, d.dir, d.options.Host, d.options.Prefix, separator, boxes.String(), limit, d.options.Extra,
		strings.Join(d.options.IMAPPlugins, " "), strings.Join(d.options.Plugins, " "),
		d.ports["imap"], d.ports["imaps"], d.ports["pop3"], d.ports["pop3s"])
}

// ready waits until both services greet.
func (d *Dovecot) ready(ended <-chan struct{}) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := errors.Join(d.greets("imap", "* OK"), d.greets("pop3", "+OK"))
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return errors.New("it ended")
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

func (d *Dovecot) greets(service, with string) error {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(context.Background(), "tcp", d.Addr(service))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // one line was all
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, with) {
		err = errors.New(line)
	}
	return err
}

// Addr is host:port of imap, imaps, pop3 or pop3s. The two without s speak plain text and STARTTLS.
func (d *Dovecot) Addr(service string) string {
	return net.JoinHostPort(d.options.Host, strconv.Itoa(d.ports[service]))
}

// Port of imap, imaps, pop3 or pop3s.
func (d *Dovecot) Port(service string) int { return d.ports[service] }

// Host is the address it listens on.
func (d *Dovecot) Host() string { return d.options.Host }

// CA issued the server's certificate.
func (d *Dovecot) CA() *CA { return d.ca }

// Settings reach a user's account.
func (d *Dovecot) Settings(protocol mailbox.Protocol, security mailbox.Security, user string) mailbox.Settings {
	service := string(protocol)
	if security == mailbox.ImplicitTLS {
		service += "s"
	}
	return mailbox.Settings{Protocol: protocol, Host: d.options.Host, Port: d.ports[service], Security: security,
		Username: user, Password: d.options.Users[user], RootCAs: d.ca.Pool()}
}

// Maildir is the directory of a mailbox, by its full name.
func (d *Dovecot) Maildir(user, name string) string {
	root := filepath.Join(d.dir, "mail", user)
	name = strings.TrimPrefix(name, d.options.Prefix)
	if name == "" || strings.EqualFold(name, "INBOX") {
		return root
	}
	return filepath.Join(root, "."+strings.ReplaceAll(name, "/", "."))
}

const mailUser = 8 // Debian's mail, uid and gid

func (d *Dovecot) makeMaildir(dir string) error {
	for _, sub := range []string{"cur", "new", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	for path := dir; path != d.dir; path = filepath.Dir(path) {
		if err := os.Chown(path, mailUser, mailUser); err != nil {
			return err
		}
	}
	for _, sub := range []string{"cur", "new", "tmp"} {
		if err := os.Chown(filepath.Join(dir, sub), mailUser, mailUser); err != nil {
			return err
		}
	}
	return nil
}

// Deliver puts a mail into a mailbox as a delivery agent does: written aside, then renamed. Bytes stay as they are.
func (d *Dovecot) Deliver(user, name string, raw []byte) error {
	dir := d.Maildir(user, name)
	if err := d.makeMaildir(dir); err != nil {
		return err
	}
	file := fmt.Sprintf("%d.M%06dP%dQ%06d.posthorn", time.Now().Unix(), time.Now().Nanosecond()/1000, os.Getpid(),
		d.unique.Add(1))
	aside := filepath.Join(dir, "tmp", file)
	if err := os.WriteFile(aside, raw, 0o600); err != nil {
		return err
	}
	if err := os.Chown(aside, mailUser, mailUser); err != nil {
		return err
	}
	return os.Rename(aside, filepath.Join(dir, "new", file))
}

// maildirFlags are the flags that a file's name tells.
var maildirFlags = map[rune]string{'S': `\Seen`, 'T': `\Deleted`, 'R': `\Answered`, 'F': `\Flagged`, 'D': `\Draft`}

// uids reads Dovecot's list of the UIDs in a Maildir, by file name without flags.
func (d *Dovecot) uids(user, name string) (map[string]uint32, error) {
	list, err := os.ReadFile(filepath.Join(d.Maildir(user, name), "dovecot-uidlist"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	uids := map[string]uint32{}
	for line := range strings.Lines(string(list)) {
		first, rest, _ := strings.Cut(line, " ")
		_, file, ok := strings.Cut(rest, ":")
		if uid, err := strconv.ParseUint(first, 10, 32); ok && err == nil {
			base, _, _ := strings.Cut(strings.TrimRight(file, "\n"), ":2,")
			uids[base] = uint32(uid)
		}
	}
	return uids, nil
}

// Mails lists a mailbox in the order of UIDs, mails that Dovecot has not seen yet at the end and without UID; none when
// there is no such mailbox.
func (d *Dovecot) Mails(user, name string) ([]Mail, error) {
	type named struct {
		name string
		mail Mail
	}
	var found []named
	uids, err := d.uids(user, name)
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{"cur", "new"} {
		entries, err := os.ReadDir(filepath.Join(d.Maildir(user, name), sub))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, entry := range entries {
			raw, err := os.ReadFile(filepath.Join(d.Maildir(user, name), sub, entry.Name()))
			if errors.Is(err, os.ErrNotExist) {
				return d.Mails(user, name) // moved meanwhile: look again
			}
			if err != nil {
				return nil, err
			}
			base, _, _ := strings.Cut(entry.Name(), ":2,")
			mail := Mail{UID: uids[base], Raw: raw}
			if _, flags, ok := strings.Cut(entry.Name(), ":2,"); ok {
				for _, letter := range flags {
					if flag, known := maildirFlags[letter]; known {
						mail.Flags = append(mail.Flags, flag)
					}
				}
			}
			found = append(found, named{entry.Name(), mail})
		}
	}
	slices.SortFunc(found, func(a, b named) int {
		// UID 0 minus one is the highest number.
		return cmp.Or(cmp.Compare(a.mail.UID-1, b.mail.UID-1), strings.Compare(a.name, b.name))
	})
	mails := make([]Mail, len(found))
	for i, f := range found {
		mails[i] = f.mail
	}
	return mails, nil
}
