package main

import (
	"runtime"
	"runtime/debug"
)

// versionInfo says which program this is.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Time     string `json:"time,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func version() versionInfo {
	v := versionInfo{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			v.Revision = setting.Value
		case "vcs.modified":
			v.Modified = setting.Value == "true"
		case "vcs.time":
			v.Time = setting.Value
		}
	}
	if built := info.Main.Version; built != "" && built != "(devel)" {
		v.Version = built
	}
	return v
}

type versionCmd struct {
	JSON bool `help:"Print JSON."`
}

// Run prints the version.
func (c *versionCmd) Run(p *program) error {
	v := version()
	if c.JSON {
		return p.printJSON(v)
	}
	text := "posthorn " + v.Version
	if v.Revision != "" && v.Version == "devel" {
		text += " " + v.Revision
	}
	return p.printf("%s (%s, %s)\n", text, v.Go, v.Platform)
}
