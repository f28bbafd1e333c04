package main

import (
	"fmt"
	"strings"

	"posthorn/schemas"
)

type schemaCmd struct {
	Type string `arg:"" optional:"" help:"${help_schema_type}"`
}

// Run prints a schema or the list of types.
func (c *schemaCmd) Run(p *program) error {
	if c.Type == "" {
		return p.printf("%s\n", strings.Join(schemas.Types(), "\n"))
	}
	schema, ok := schemas.Schema(c.Type)
	if !ok {
		return fmt.Errorf("there is no event type %q; `posthorn schema` lists them", c.Type)
	}
	_, err := p.out.Write(schema)
	return err
}
