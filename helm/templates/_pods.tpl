{{/* What every pod has in common. Takes a list: root, component. */}}
{{- define "attune.pod" -}}
{{- $root := index . 0 -}}{{- $values := index $root.Values (index . 1) -}}
serviceAccountName: {{ include "attune.name" $root }}
automountServiceAccountToken: false
# Kubernetes would add variables such as ATTUNE_SERVER_PORT, which Attune refuses as unknown settings.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What every container has in common. Takes a list: root, component. */}}
{{- define "attune.container" -}}
{{- $root := index . 0 -}}{{- $values := index $root.Values (index . 1) -}}
name: {{ index . 1 }}
image: {{ include "attune.image" (list $root $values.image) }}
imagePullPolicy: {{ $root.Values.imagePullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources: {{- toYaml $values.resources | nindent 2 }}
{{- end -}}

{{/* Restarts the pods when a setting changes; processes read settings once. */}}
{{- define "attune.checksum" -}}
checksum/config: {{ include (print .Template.BasePath "/settings-configmap.yaml") . | sha256sum }}
{{- end -}}

{{- define "attune.settings" -}}
- configMapRef:
    name: {{ include "attune.name" . }}-settings
{{- end -}}

{{- define "attune.environment" -}}
- name: ATTUNE_DATA_DIR
  value: /data
{{- end -}}

{{/* The store's URL, always by reference. Kubernetes expands only names that are defined before. */}}
{{- define "attune.redisEnvironment" -}}
{{- if .Values.redis.bundled -}}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "attune.secret" . }}, key: redis-password}
- name: ATTUNE_REDIS_URL
  value: redis://:$(REDIS_PASSWORD)@{{ include "attune.name" . }}-redis:6379/0
{{- else -}}
- name: ATTUNE_REDIS_URL
  valueFrom:
    secretKeyRef: {name: {{ include "attune.redisSecret" . }}, key: {{ .Values.redis.urlKey }}}
{{- with .Values.redis.brokerUrlKey }}
- name: ATTUNE_BROKER_URL
  valueFrom:
    secretKeyRef: {name: {{ include "attune.redisSecret" $ }}, key: {{ . }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "attune.mounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "attune.tmpVolume" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmpSize }}}
{{- end -}}

{{- define "attune.sharedVolumes" -}}
- name: data
  persistentVolumeClaim:
    claimName: {{ .Values.checkpoints.existingClaim | default (printf "%s-checkpoints" (include "attune.name" .)) }}
{{ include "attune.tmpVolume" . }}
{{- end -}}

{{/*
Ready means that the broker's port answers. Not liveness: while Redis is away, a restart would only cost a training.
*/}}
{{- define "attune.brokerProbe" -}}
exec:
  command:
    - python
    - -c
    - |
      import os, socket, urllib.parse
      url = urllib.parse.urlsplit(os.environ.get("ATTUNE_BROKER_URL") or os.environ["ATTUNE_REDIS_URL"])
      socket.create_connection((url.hostname, url.port or 6379), 3).close()
periodSeconds: 20
timeoutSeconds: 5
failureThreshold: 3
{{- end -}}
