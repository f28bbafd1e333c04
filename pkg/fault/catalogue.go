package fault

import (
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

//go:embed catalogue.*.yaml
var files embed.FS

type entry struct {
	Text `yaml:",inline"`

	Permanent bool `yaml:"permanent"`
}

// catalogue holds the texts by language and code. It is read once, from the files beside this one.
var catalogue = mustRead(files)

func mustRead(from fs.FS) map[string]map[Code]entry {
	read := map[string]map[Code]entry{}
	names, err := fs.Glob(from, "catalogue.*.yaml")
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		language := strings.TrimSuffix(strings.TrimPrefix(name, "catalogue."), ".yaml")
		data, err := fs.ReadFile(from, name)
		if err != nil {
			panic(err)
		}
		texts := map[Code]entry{}
		if err := yaml.UnmarshalWithOptions(data, &texts, yaml.Strict()); err != nil {
			panic(fmt.Sprintf("%s: %v", name, err))
		}
		read[language] = texts
	}
	return read
}

// Codes lists every code of the catalogue, sorted.
func Codes() []Code { return slices.Sorted(maps.Keys(catalogue["en"])) }
