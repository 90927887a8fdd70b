{{/*
Name of every object: attune, or attune-RELEASE. It starts with a letter and has no dots, because Services demand both,
and has at most 40 characters, so that a StatefulSet's pods and labels stay within 63.
*/}}
{{- define "attune.name" -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- $name := hasPrefix "attune" $release | ternary $release (printf "attune-%s" $release) -}}
{{- if gt (len $name) 40 -}}
{{- printf "%s-%s" (trunc 31 $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of one component. Takes a list: root, component. */}}
{{- define "attune.selector" -}}
app.kubernetes.io/name: attune
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* All labels of an object. Takes a list: root, component. */}}
{{- define "attune.labels" -}}
{{- $root := index . 0 -}}
{{ include "attune.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{/* metadata of an object. Takes a list: root, component. */}}
{{- define "attune.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "attune.name" $root }}-{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "attune.labels" . | nindent 2 }}
{{- end -}}

{{/* Image reference. Takes a list: root, the image's values. */}}
{{- define "attune.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}

{{- define "attune.secret" -}}
{{- required "Set existingSecret to the name of a Secret with the keys api-keys, api-key and redis-password." .Values.existingSecret -}}
{{- end -}}

{{- define "attune.redisSecret" -}}
{{- required "Set redis.existingSecret to the name of a Secret with the URL of your Redis-protocol server, or set redis.bundled to true." .Values.redis.existingSecret -}}
{{- end -}}
