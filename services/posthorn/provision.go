package main

import (
	"errors"
	"fmt"

	"posthorn/pkg/bus"
	"posthorn/pkg/source"
)

type provisionCmd struct {
	Replicas int         `default:"0" placeholder:"N" help:"${help_provision_replicas}"`
	MaxMail  source.Size `default:"0B" placeholder:"50GB" help:"${help_provision_max_mail}"`
	JSON     bool        `help:"Print JSON."`
}

// Help says more.
func (provisionCmd) Help() string {
	return `Needs a NATS user that may create streams; run itself then needs none. It removes nothing, and does nothing ` +
		`the second time.

Example:

  posthorn provision --nats nats://admin:secret@nats.example.org --replicas 3`
}

// Run provisions the broker.
func (c *provisionCmd) Run(p *program) error {
	if c.Replicas < 0 || c.Replicas > 5 {
		return usageError{"--replicas takes 1 to 5"}
	}
	conn, err := p.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	changes, err := conn.Provision(p.ctx, bus.ProvisionConfig{Replicas: c.Replicas, MaxBytes: int64(c.MaxMail)})
	if err != nil {
		for _, change := range changes {
			err = errors.Join(err, p.printf("%s\n", change)) // what was done until then
		}
		return err
	}
	if c.JSON {
		if changes == nil {
			changes = []string{}
		}
		return p.printJSON(map[string]any{"changes": changes})
	}
	if len(changes) == 0 {
		return p.printf("Everything is there.\n")
	}
	for _, change := range changes {
		if err := p.printf("%s\n", change); err != nil {
			return err
		}
	}
	return nil
}

type rotateKeysCmd struct {
	JSON bool `help:"Print JSON."`
}

// Help says more.
func (rotateKeysCmd) Help() string {
	return `Running processes read the new key from the same file by themselves. ` +
		`Keep a copy of the file: without it no stored password can be read.`
}

// Run makes a key and seals every password with it.
func (c *rotateKeysCmd) Run(p *program) error {
	conn, err := p.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	keys, err := p.keys()
	if err != nil {
		return err
	}
	store, err := p.store(conn, keys, nil)
	if err != nil {
		return err
	}
	id, err := keys.AddKey()
	if err != nil {
		return fmt.Errorf("no key was added: %w", err)
	}
	sealed, err := store.RotateKeys(p.ctx, p.user)
	if err != nil {
		return fmt.Errorf("the key %s was added and %s sealed with it, but not all; run it again: %w",
			id, count(sealed, "password", "passwords"), err)
	}
	if c.JSON {
		return p.printJSON(map[string]any{"key": id, "sealed": sealed, "key_file": keys.Path()})
	}
	return p.printf("The key %s was added to %s and %s sealed with it. Keep a new copy of the file in a safe place.\n",
		id, keys.Path(), count(sealed, "password", "passwords"))
}
