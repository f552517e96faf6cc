{{- define "litejoin.labels" -}}
app.kubernetes.io/name: litejoin-operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "litejoin.selector" -}}
app.kubernetes.io/name: litejoin-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "litejoin.secretRules" -}}
# Only names are watched, only those Secrets are read that a document names, and only those of pipelines are written: a
# rule can say none of it.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- define "litejoin.rules" -}}
- apiGroups: [litejoin.io]
  resources: [pipelines, sources, joins, windows, sinks]
  verbs: [get, list, watch]
- apiGroups: [litejoin.io]
  resources: [pipelines/status, sources/status, joins/status, windows/status, sinks/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods, persistentvolumeclaims]
  verbs: [get, list, watch, patch, delete]
{{- if or .Values.watchNamespace (eq .Values.secrets "all") }}
{{ include "litejoin.secretRules" . }}
{{- end }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [cronjobs, jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# Why the pod of a StatefulSet may not be made is told in its Events alone.
- apiGroups: ['']
  resources: [events]
  verbs: [list]
{{- end }}
