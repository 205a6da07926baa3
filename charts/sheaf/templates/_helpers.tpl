{{/* The operator's objects are named after the release: sheaf-operator in a release named sheaf. */}}
{{- define "sheaf.operator" -}}
{{ .Release.Name }}-operator
{{- end }}

{{/* Never changed once released: a Deployment's selector cannot be. */}}
{{- define "sheaf.selectorLabels" -}}
app.kubernetes.io/name: sheaf-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "sheaf.labels" -}}
{{ include "sheaf.selectorLabels" . }}
app.kubernetes.io/part-of: sheaf
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* An image reference from (image value, chart). */}}
{{- define "sheaf.image" -}}
{{- $image := index . 0 -}}
{{- $chart := index . 1 -}}
{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $chart.AppVersion }}{{ end }}
{{- end }}

{{- define "sheaf.hasKServe" -}}
{{- if .Capabilities.APIVersions.Has "serving.kserve.io/v1alpha1/ClusterServingRuntime" }}yes{{ end -}}
{{- end }}

{{- define "sheaf.hasServingRuntime" -}}
{{- if or (eq .Values.servingRuntime.create "Always") (and (eq .Values.servingRuntime.create "Auto") (include "sheaf.hasKServe" .)) }}yes{{ end -}}
{{- end }}
