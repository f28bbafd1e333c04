module posthorn/deployments/e2e

go 1.26.0

toolchain go1.26.11

require posthorn v0.0.0

replace posthorn => ../..
