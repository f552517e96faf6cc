//go:build tools

// Package argocd pins the Argo CD that the tests run.
package argocd

import _ "github.com/argoproj/argo-cd/v3/cmd"
