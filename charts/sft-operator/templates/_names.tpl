{{/* Labels by which the operator's pod is found; they never change. */}}
{{- define "selector" -}}
app.kubernetes.io/name: sft-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "labels" -}}
{{ include "selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Names as references: [{name: a}, {name: b}]. */}}
{{- define "references" -}}
{{- range . }}
- name: {{ . | quote }}
{{- end }}
{{- end }}
