package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"posthorn/pkg/bus"
	"posthorn/pkg/fault"
	"posthorn/pkg/secret"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
	"posthorn/services/allinone"
)

// notRunning says that no running program was found.
type notRunning struct{ looked string }

// Error says what was looked for, and how to start.
func (e *notRunning) Error() string {
	return "no running Posthorn was found: " + e.looked + "\n" +
		"  you: start it with `posthorn run`, or name a running one with --data DIR or --nats URL " +
		"(POSTHORN_DATA, POSTHORN_NATS)"
}

// url finds the NATS server of the running program.
func (p *program) url() (string, error) {
	if url := p.globals.NATS; url != "" && url != allinone.Embedded {
		return url, nil
	}
	path := filepath.Join(p.globals.Data, "ready.json")
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", &notRunning{looked: "no --nats is given, and there is no " + path}
	}
	if err != nil {
		return "", fmt.Errorf("%s cannot be read: %w; it belongs to the user that runs Posthorn", path, err)
	}
	var found allinone.Addresses
	if err := json.Unmarshal(content, &found); err != nil {
		return "", fmt.Errorf("%s cannot be read: %w", path, err)
	}
	if found.NATS == "" {
		return "", errors.New("the program running on " + p.globals.Data + " has no address for commands: " +
			"start it with --nats-listen 127.0.0.1:4222")
	}
	return found.NATS, nil
}

// connect connects to the broker of the running program. Close the connection.
func (p *program) connect() (*bus.Conn, error) {
	url, err := p.url()
	if err != nil {
		return nil, err
	}
	conn, err := bus.Connect(p.ctx, bus.Options{URL: url, Name: "posthorn command", Logger: p.log})
	if err == nil {
		return conn, nil
	}
	if fault.CodeOf(err) != fault.StoreUnavailable {
		return nil, err
	}
	looked := "nobody answers at " + withoutPassword(url)
	if p.globals.NATS == "" {
		looked += ", which " + filepath.Join(p.globals.Data, "ready.json") + " names; it may be left from a program " +
			"that did not stop cleanly"
	}
	return nil, &notRunning{looked: looked}
}

// withoutPassword takes the credentials out of a URL, or several.
func withoutPassword(urls string) string {
	parts := strings.Split(urls, ",")
	for i, part := range parts {
		scheme, rest, ok := strings.Cut(part, "://")
		if !ok {
			scheme, rest = "nats", part
		}
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			rest = rest[at+1:]
		}
		parts[i] = scheme + "://" + rest
	}
	return strings.Join(parts, ",")
}

// keys reads the keys of the running program.
func (p *program) keys() (*secret.Keyring, error) {
	keys, err := secret.Load(p.globals.keyFile())
	if err != nil {
		return nil, fmt.Errorf("the key file %s: %w", p.globals.keyFile(), err)
	}
	return keys, nil
}

// store opens the store of sources. keys may be nil where no password is written. Ports are those that the running
// fetchers allow, where none are given.
func (p *program) store(conn *bus.Conn, keys *secret.Keyring, ports []int) (*source.Store, error) {
	if len(ports) == 0 {
		presents, err := stage.Presents(p.ctx, conn)
		if err != nil {
			return nil, err
		}
		for _, present := range presents {
			if slices.Contains(present.Stages, allinone.Fetcher) {
				ports = append(ports, present.AllowedPorts...)
			}
		}
		slices.Sort(ports)
		ports = slices.Compact(ports)
	}
	return stage.OpenSources(p.ctx, conn, keys, ports, p.log)
}

// withStore connects, opens the store without keys, and calls do.
func (p *program) withStore(do func(*bus.Conn, *source.Store) error) error {
	conn, err := p.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	store, err := p.store(conn, nil, nil)
	if err != nil {
		return err
	}
	return do(conn, store)
}

// find finds the source that a person names, by id or by name.
func (p *program) find(store *source.Store, name string) (source.Source, error) {
	sources, err := store.List(p.ctx)
	if err != nil {
		return source.Source{}, err
	}
	var named []source.Source
	for _, s := range sources {
		if s.ID == name {
			return s, nil
		}
		if strings.EqualFold(s.Name, strings.TrimSpace(name)) {
			named = append(named, s)
		}
	}
	if len(named) == 1 {
		return named[0], nil
	}
	if len(sources) == 0 {
		return source.Source{}, fmt.Errorf("there is no source %q: there are none at all; "+
			"`posthorn sources apply -f FILE` adds some", name)
	}
	ids := make([]string, len(sources))
	for i, s := range sources {
		ids[i] = s.ID
	}
	return source.Source{}, fmt.Errorf("there is no source %q; there are: %s", name, strings.Join(ids, ", "))
}

// whoami is the person at the keyboard, for the audit.
func whoami() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return "cli"
}
