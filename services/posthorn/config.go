package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"
)

// configFile is the path of a file that holds flags as keys. It is read before flags get their values: what it says
// gives way to the environment, and that to the command line.
type configFile string

// BeforeResolve reads the file.
func (configFile) BeforeResolve(k *kong.Kong, ctx *kong.Context, trace *kong.Path) error {
	path, ok := ctx.FlagValue(trace.Flag).(configFile)
	if !ok || path == "" {
		return nil
	}
	resolver, err := readConfig(string(path), k.Model)
	if err != nil {
		return err
	}
	ctx.AddResolver(resolver)
	return nil
}

// config holds the values of a file by flag name.
type config map[string]any

// configCommands are the commands whose flags may stand in a config file.
var configCommands = []string{"run", "demo"} //nolint:gochecknoglobals // a constant list

// readConfig reads a file. Keys are the names of flags, with _ or - between their words.
func readConfig(path string, app *kong.Application) (config, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the person who starts the program names it
	if err != nil {
		return nil, fmt.Errorf("the config file cannot be read: %w", err)
	}
	var written map[string]any
	if err := yaml.Unmarshal(data, &written); err != nil {
		return nil, fmt.Errorf("the config file %s is no YAML: %s", path, yaml.FormatError(err, false, true))
	}
	known := map[string]bool{}
	for _, flag := range configFlags(app) {
		known[flag.Name] = true
	}
	values := config{}
	for key, value := range written {
		name := strings.ReplaceAll(key, "_", "-")
		if !known[name] || name == "config" {
			return nil, fmt.Errorf("the config file %s has the unknown key %q; there are: %s",
				path, key, strings.Join(sortedKeys(known, "config"), ", "))
		}
		if values[name], err = scalar(value); err != nil {
			return nil, fmt.Errorf("the config file %s: %s: %w", path, key, err)
		}
	}
	return values, nil
}

// configFlags are those of the whole program and of the commands that run stages.
func configFlags(app *kong.Application) []*kong.Flag {
	flags := slices.Clone(app.Flags)
	for _, command := range app.Children {
		if slices.Contains(configCommands, command.Name) {
			flags = append(flags, command.Flags...)
		}
	}
	return slices.DeleteFunc(flags, func(flag *kong.Flag) bool { return flag.Name == "help" })
}

// scalar turns a YAML value into the text of a flag.
func scalar(value any) (string, error) {
	switch v := value.(type) {
	case nil:
		return "", fmt.Errorf("it has no value")
	case []any:
		parts := make([]string, len(v))
		for i, part := range v {
			text, err := scalar(part)
			if err != nil {
				return "", err
			}
			parts[i] = text
		}
		return strings.Join(parts, ","), nil
	case map[string]any:
		return "", fmt.Errorf("it is a mapping, and has to be one value or a list")
	default:
		return fmt.Sprint(v), nil
	}
}

// Validate finds nothing: the file was checked when it was read.
func (config) Validate(*kong.Application) error { return nil }

// Resolve gives the value of a flag of the program or of a command that runs stages, unless the environment has one.
func (c config) Resolve(_ *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	if parent.Command != nil && !slices.Contains(configCommands, parent.Command.Name) {
		return nil, nil
	}
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set {
			return nil, nil
		}
	}
	value, ok := c[flag.Name]
	if !ok {
		return nil, nil
	}
	return value, nil
}
