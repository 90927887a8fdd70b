{{/* Opening of a component's policy. Takes a list: root, component. */}}
{{- define "attune.networkPolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "attune.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "attune.selector" . | nindent 6 }}
{{- end -}}

{{/* A peer: the pods of one component. Takes a list: root, component. */}}
{{- define "attune.peer" -}}
- podSelector:
    matchLabels:
      {{- include "attune.selector" . | nindent 6 }}
{{- end -}}

{{/* The way to the store: the bundled server, or the given ports anywhere, since a URL in a Secret is not ours to read. */}}
{{- define "attune.redisEgress" -}}
{{- if .Values.redis.bundled -}}
- to:
    {{- include "attune.peer" (list . "redis") | nindent 4 }}
  ports:
    - {protocol: TCP, port: 6379}
{{- else -}}
- ports:
    {{- range .Values.networkPolicy.redisPorts }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- end -}}
