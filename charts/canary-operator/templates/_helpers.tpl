{{- define "canary-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "canary-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := include "canary-operator.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "canary-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "canary-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "canary-operator.labels" -}}
{{ include "canary-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "canary-operator.serviceAccountName" -}}
{{- default (ternary (include "canary-operator.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- define "canary-operator.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Everything the operator may do, in one place for ClusterRole and Role.
Deployments, Services and Ingresses: `create` and `delete` are for the canary's own, `patch` also replaces the stable
Deployment's pod template at promotion. No Secrets, no ConfigMaps, no pods beyond reading.
*/}}
{{- define "canary-operator.rules" -}}
- apiGroups: [canary-operator.dev]
  resources: [canaryreleases]
  verbs: [get, list, watch, patch]
- apiGroups: [canary-operator.dev]
  resources: [canaryreleases/status]
  verbs: [update, patch]
# Setting blockOwnerDeletion on the canary's objects takes this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [canary-operator.dev]
  resources: [canaryreleases/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, delete]
- apiGroups: [networking.k8s.io]
  resources: [ingresses]
  verbs: [get, list, watch, create, patch, delete]
# Whether an autoscaler or a disruption budget stands in the way of a release that is about to start.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# The last line that a crashing canary wrote.
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* What has no namespace: whether ingress-nginx serves the class of an Ingress. */}}
{{- define "canary-operator.clusterRules" -}}
- apiGroups: [networking.k8s.io]
  resources: [ingressclasses]
  verbs: [get]
{{- end }}

{{/* In the operator's own namespace. What is created has no name yet that a rule could name. */}}
{{- define "canary-operator.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "canary-operator.fullname" . }}]
  verbs: [get, list, watch, update]
{{- end }}

{{/* Where the ingress-nginx controllers run: whose metrics there are to ask. */}}
{{- define "canary-operator.controllerRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- end }}
